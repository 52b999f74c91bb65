"""From weights and images, videos or a camera to drawn images and files for other tools."""
