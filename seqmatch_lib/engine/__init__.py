"""Training of networks, plain and differentiable: networks, augmentation, the inner loop, evaluation."""
