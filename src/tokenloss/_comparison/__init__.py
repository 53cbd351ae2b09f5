"""Two models on the same tokens: columns, figures and standard errors, from arrays and records. No file is opened."""
