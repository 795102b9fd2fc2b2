"""What differs between families: a file each, holding only that."""
