"""The images: fetched, verified, split, and made into batches."""
