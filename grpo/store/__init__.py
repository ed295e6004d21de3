"""What a run keeps on disk and sends out."""
