"""The recommenders: each turns a batch of users into rankings, and they merge into one."""
