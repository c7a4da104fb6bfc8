"""What a run goes on from: the files, the thread that writes them, and how a run takes them up again."""
