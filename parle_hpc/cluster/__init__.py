"""Ranks, replicas and machines: who is where, how they start, agree, wait and end."""
