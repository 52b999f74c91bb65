"""Draw detections and curves."""
