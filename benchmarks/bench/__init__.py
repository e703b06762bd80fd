"""The benchmark: contenders in processes of their own, the same work, in turns; how fast, how large, how alike."""
