"""What names, types and sizes of a program mean, before anything is built from them."""
