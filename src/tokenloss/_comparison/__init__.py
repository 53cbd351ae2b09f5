"""Two models on the same tokens: columns, statistics and standard errors, from arrays and records. It opens no file."""
