"""Training that can be killed at any instruction and loses nothing. An island: it runs inside the job."""
