"""What a training gives: runs read from outside, exported models, their samplers."""
