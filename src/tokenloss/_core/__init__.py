"""From any array to a running job, and the job itself."""
