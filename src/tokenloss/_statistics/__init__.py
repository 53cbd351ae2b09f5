"""Sums over tokens, sequences and files, their errors and intervals."""
