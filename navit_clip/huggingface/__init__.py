"""Models out to Hugging Face's Siglip2 classes, and their weights in."""
