"""Images: from what a row gives, to decoded pixels, kept by content."""
