"""Measurements that anybody can repeat: published protocols and generated data, each a table from one command."""
