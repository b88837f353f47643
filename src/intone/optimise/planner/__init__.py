"""What a code base lacks, and plans for new features of it: with templates, or with a language model."""
