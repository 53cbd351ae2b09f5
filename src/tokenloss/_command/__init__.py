"""The command: argv becomes calls of the public functions, and results become exit statuses."""
