"""Periodic convolutions: Glow with circular d x d convolutions, inverted among frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from benchmarks.baselines.backbone import ImageShape, multi_scale_flow
from benchmarks.baselines.emerging import check_odd
from benchmarks.baselines.glow import affine_coupling
from nflows_mixer._checks import check_channels, check_positive
from nflows_mixer.flows import ImageFlow


class PeriodicConvolution(Transform):
    r"""Invertible circular convolution: a complex matrix of the channels at every frequency.

    .. math:: y_p = \sum_t K_t\,x_{p+t}, \qquad \hat y_f = \hat K_f\,\hat x_f, \qquad
              \hat K_f = \sum_t K_t\,e^{2 \pi i f \cdot t}, \qquad
              \log|\det J| = \sum_f \log|\det \hat K_f|

    p + t is taken modulo the size of the image, t runs over d x d offsets around 0, and f over
    the H W frequencies of the discrete Fourier transform, in cycles per pixel. Images are real,
    so that f and -f have conjugate matrices and half of them are formed. d^2 C^2 parameters.
    Starts as an orthogonal 1x1 convolution. Both directions cost O(H W C^2) per image for the
    products, O(H W C^3) per call for the determinants. Nothing keeps a matrix from becoming
    singular but the likelihood, which then tends to minus infinity.

    Args:
        channels: C.
        kernel_size: d, odd.

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if the kernel is even, or inputs are no images of C channels.

    References:
        Hoogeboom, van den Berg and Welling, Emerging convolutions for generative normalizing
        flows, 2019, Section 4.

    Example:
        >>> convolution = PeriodicConvolution(4)
        >>> images = torch.randn(2, 4, 5, 6)
        >>> outputs, logabsdet = convolution(images)
        >>> torch.allclose(outputs.norm(dim=1), images.norm(dim=1), rtol=1e-4)
        True
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        check_positive("PeriodicConvolution", "channels", channels)
        check_odd("PeriodicConvolution", kernel_size)
        self.channels = channels
        self.kernel_size = kernel_size
        weight = torch.zeros(channels, channels, kernel_size, kernel_size)
        nn.init.orthogonal_(weight[:, :, kernel_size // 2, kernel_size // 2])
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W]."""
        check_channels(inputs, self.channels, "PeriodicConvolution")
        with torch.autocast(inputs.device.type, enabled=False):
            matrices = self.matrices(inputs.shape[2], inputs.shape[3])
            frequencies = torch.einsum("hwkc,bchw->bkhw", matrices, self._frequencies(inputs))
            outputs = self._from_frequencies(frequencies, inputs)
            return outputs, self._logabsdet(matrices, inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] back."""
        check_channels(inputs, self.channels, "PeriodicConvolution")
        with torch.autocast(inputs.device.type, enabled=False):
            matrices = self.matrices(inputs.shape[2], inputs.shape[3])
            frequencies = self._frequencies(inputs).permute(2, 3, 1, 0)
            frequencies = torch.linalg.solve(matrices, frequencies).permute(3, 2, 0, 1)
            outputs = self._from_frequencies(frequencies, inputs)
            return outputs, -self._logabsdet(matrices, inputs)

    def matrices(self, height: int, width: int) -> Tensor:
        """Return those of the frequencies that a real FFT keeps, [H, W // 2 + 1, C, C]."""
        weight = self.weight.to(self.weight.dtype.to_complex())
        exact = {"dtype": torch.float64, "device": weight.device}
        rows = self._phases(torch.fft.fftfreq(height, **exact)).to(weight)
        columns = self._phases(torch.fft.rfftfreq(width, **exact)).to(weight)
        return torch.einsum("kcuv,hu,wv->hwkc", weight, rows, columns)

    def _phases(self, frequencies: Tensor) -> Tensor:
        """e^(2 pi i f t) for each frequency and each offset from the centre of the kernel."""
        offsets = torch.arange(self.kernel_size, device=frequencies.device) - self.kernel_size // 2
        angles = 2 * math.pi * frequencies[:, None] * offsets
        return torch.polar(torch.ones_like(angles), angles)

    @staticmethod
    def _frequencies(images: Tensor) -> Tensor:
        # Before torch 2.5, the FFT of a CPU refuses a batch of nothing: one image stands in.
        return torch.fft.rfft2(images if len(images) else images.new_zeros(1, *images.shape[1:]))

    @staticmethod
    def _from_frequencies(frequencies: Tensor, like: Tensor) -> Tensor:
        return torch.fft.irfft2(frequencies, s=like.shape[2:])[: len(like)]

    def _logabsdet(self, matrices: Tensor, inputs: Tensor) -> Tensor:
        of_columns = torch.linalg.slogdet(matrices).logabsdet.sum(0)
        # Column f of the half plane stands for -f also, unless that is the same column.
        width = inputs.shape[3]
        both = torch.full_like(of_columns, 2.0)
        both[0] = 1.0
        if width % 2 == 0:
            both[-1] = 1.0
        return (both * of_columns).sum() * inputs.new_ones(inputs.shape[0])


def periodic(
    image_shape: Sequence[int],
    hidden_channels: int = 512,
    scales: int = 3,
    steps: int = 8,
    kernel_size: int = 3,
    levels: int = 256,
) -> ImageFlow:
    r"""Build Glow with each 1x1 convolution replaced by a periodic one.

    .. math:: g = \mathrm{coupling} \circ \mathcal F^{-1} \hat K \mathcal F \circ \mathrm{ActNorm}

    Args:
        image_shape: (C, H, W).
        hidden_channels: of the couplings' networks.
        scales: number of resolutions.
        steps: of flow at each scale.
        kernel_size: of the periodic convolutions, odd.
        levels: number of pixel values.

    References:
        Hoogeboom, van den Berg and Welling, Emerging convolutions for generative normalizing
        flows, 2019, Section 4.

    Example:
        >>> sum(parameter.numel() for parameter in periodic((3, 32, 32)).parameters())
        11184012
    """

    def convolution(shape: ImageShape) -> Transform:
        return PeriodicConvolution(shape[0], kernel_size)

    coupling = affine_coupling(hidden_channels)
    return multi_scale_flow(image_shape, convolution, coupling, scales, steps, levels)
