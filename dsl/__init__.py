"""Text to Graph: the parser, names and types of the language, and its standard library."""
