"""Text and conversations on their way from files to packed rows of token ids."""
