"""Commands: the only room that parses arguments and prints."""
