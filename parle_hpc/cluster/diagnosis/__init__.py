"""What the doctor asks of a machine (probes), concludes (findings), and survives (supervise)."""
