"""Small faults put into the library one at a time, to see whether a test fails of each: `make mutation`."""
