"""What was run or measured as a page for people: rows on disk become one offline HTML file, Markdown and JSON."""
