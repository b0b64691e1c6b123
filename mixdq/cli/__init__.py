"""The command line: one verb a file, typer for the words, rich for the screen. Nothing here computes anything."""
