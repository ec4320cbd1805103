"""Room: images in, images out. Knows nothing about text-only methods."""
