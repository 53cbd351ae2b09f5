"""Two models on the same tokens: columns, figures and standard errors. It takes arrays and records, and opens no file."""
