"""One run on one rank: set up, the loop, and what happens between its rounds."""
