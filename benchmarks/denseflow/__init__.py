"""What DenseFlow costs beside its convolutions alone, and its paper's ablations scaled down."""
