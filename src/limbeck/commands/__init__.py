"""The commands, one file each. A command is a function ``main(words) -> exit status``; it imports what it needs."""
