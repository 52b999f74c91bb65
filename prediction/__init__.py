"""Run trained weights on images, videos or a camera; draw the results, and write files for other tools."""
