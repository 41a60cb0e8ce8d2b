"""DICOM rendering, step by step against pydicom's functions and, where those are wrong, against arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lookhere.data.dicom import dicom_size, read_dicom
from lookhere.errors import DataError, UsageError

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra [medical]")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.pixels.decoders.base import Decoder  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import MPEG2MPML, ExplicitVRLittleEndian, JPEGLSLossless  # noqa: E402

SIZE = (30, 40)  # rows, columns


def stored(bits: int, signed: bool = False) -> np.ndarray:
    """Return values in the middle of what can be stored, so that the observed and the possible range differ."""
    low = -(2 ** (bits - 1)) if signed else 0
    span = 2**bits
    return np.random.default_rng(0).integers(low + span // 8, low + span * 3 // 4, SIZE)


def dataset(values: np.ndarray, bits: int = 12, signed: bool = False, **elements: object) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.Rows, made.Columns, made.SamplesPerPixel = *SIZE, 1
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, bits, bits - 1, int(signed)
    made.PhotometricInterpretation = "MONOCHROME2"
    made.PixelData = values.astype("<i2" if signed else "<u2").tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def lut(entries: np.ndarray, first: int, depth: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 2**16, first, depth]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.add_new("LUTData", "US", entries.tolist())
    return Sequence([item])


def save(path: Path, made: Dataset) -> Path:
    made.save_as(path, enforce_file_format=True)
    return path


CURVE = np.rint(4095 * np.linspace(0, 1, 4096) ** 0.5).astype(int)
WINDOW = {"WindowCenter": 2000, "WindowWidth": 1500}
RESCALE = {"RescaleSlope": 2, "RescaleIntercept": -1024}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("bits", "signed", "elements"),
    [
        (12, False, {}),
        (10, False, {}),
        (16, True, {}),
        (12, False, RESCALE),
        (12, False, {"ModalityLUTSequence": lut(CURVE, 0, 16)}),
        (12, False, WINDOW),
        (12, False, {**WINDOW, "VOILUTFunction": "LINEAR_EXACT"}),
        (12, False, {**WINDOW, "VOILUTFunction": "SIGMOID"}),
        (12, False, {**RESCALE, **WINDOW}),
        (12, True, {"WindowCenter": -100, "WindowWidth": 1}),
        (12, False, {"VOILUTSequence": lut(CURVE, 0, 12), **WINDOW}),
        (12, False, {"ModalityLUTSequence": lut(CURVE[::-1], 0, 16), "VOILUTSequence": lut(CURVE, 0, 12)}),
    ],
)
def test_case_19_steps_agree_with_pydicom(
    tmp_path: Path, photometric: str, bits: int, signed: bool, elements: dict[str, object]
) -> None:
    made = dataset(stored(bits, signed), bits, signed, PhotometricInterpretation=photometric, **elements)
    image, rendering = read_dicom(save(tmp_path / "a.dcm", made))
    values = apply_voi_lut(apply_modality_lut(made.pixel_array, made), made).astype(np.float64)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "RescaleSlope" in elements:
        low, high = low * 2 - 1024, high * 2 - 1024
    if "ModalityLUTSequence" in elements and "VOILUTSequence" not in elements:
        high = 2**16 - 1
    expected = (values - low) / (high - low)
    if photometric == "MONOCHROME1":
        expected = 1 - expected
    assert image.dtype == np.uint16
    np.testing.assert_allclose(image / 65535, expected, atol=0.51 / 65535)
    assert rendering.inverted == (photometric == "MONOCHROME1")
    assert dicom_size(tmp_path / "a.dcm") == (40, 30)


def test_luts_that_pydicom_gets_wrong(tmp_path: Path) -> None:
    values = stored(12)
    eight = np.arange(4096) // 16
    image, _ = read_dicom(save(tmp_path / "a.dcm", dataset(values, VOILUTSequence=lut(eight, 0, 8))))
    np.testing.assert_array_equal(image, values // 16 * 257)
    below = lut(np.arange(4096), -100, 12)
    image, _ = read_dicom(save(tmp_path / "b.dcm", dataset(values, VOILUTSequence=below)))
    np.testing.assert_array_equal(image, np.rint(np.minimum(values + 100, 4095) / 4095 * 65535))
    twelve = dataset(values, ModalityLUTSequence=lut(CURVE, 0, 12))
    image, _ = read_dicom(save(tmp_path / "c.dcm", twelve))
    np.testing.assert_array_equal(image, np.rint(CURVE[values] / 4095 * 65535))


def test_case_19_views_are_chosen_by_index(tmp_path: Path) -> None:
    windows = {"WindowCenter": [1000, 3000], "WindowWidth": [500, 800]}
    made = dataset(stored(12), VOILUTSequence=lut(CURVE, 0, 12), **windows)
    path = save(tmp_path / "a.dcm", made)
    for index, wanted in enumerate(("LUT of 12 bits, 1 of 3", "centre 1000", "centre 3000")):
        image, rendering = read_dicom(path, index)
        assert wanted in rendering.voi
        expected = apply_voi_lut(made.pixel_array, made, max(index - 1, 0), prefer_lut=index == 0)
        np.testing.assert_allclose(image / 65535, expected / 4095, atol=0.51 / 65535)
    with pytest.raises(DataError, match="no view number 3: it has 1 VOI LUTs and 2 windows"):
        read_dicom(path, 3)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_all_else_as_before(tmp_path: Path, photometric: str) -> None:
    values = stored(12)
    plain, _ = read_dicom(save(tmp_path / "a.dcm", dataset(values, PhotometricInterpretation=photometric)))
    values[:, :4], values[:, 4:6] = 4000, 4095
    padding = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3900}
    made = dataset(values, PhotometricInterpretation=photometric, **padding)
    image, rendering = read_dicom(save(tmp_path / "b.dcm", made))
    assert rendering.padding == 6 * SIZE[0]
    assert not image[:, :6].any()
    np.testing.assert_array_equal(image[:, 6:], plain[:, 6:])


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm"])
def test_transfer_syntaxes_agree(name: str) -> None:
    image, _ = read_dicom(Path(get_testdata_file("MR_small.dcm")))
    np.testing.assert_array_equal(read_dicom(Path(get_testdata_file(name)))[0], image)


def test_case_19_jpeg_ls_needs_a_plug_in_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))
    if pydicom.pixels.get_decoder(JPEGLSLossless).is_available:
        np.testing.assert_array_equal(read_dicom(path)[0], read_dicom(Path(get_testdata_file("MR_small.dcm")))[0])
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(UsageError, match=r"compressed as JPEG-LS Lossless.*python-gdcm.*'lookhere\[medical\]'"):
        read_dicom(path)


def test_without_pydicom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UsageError, match=r"pydicom, which is not installed; run: pip install 'lookhere\[medical\]'"):
        dicom_size(tmp_path / "a.dcm")


BROKEN = {
    "bits above BitsStored": ({"BitsStored": 10}, "expected 0 to 1023 .BitsStored = 10"),
    "several frames": ({"NumberOfFrames": 2}, "2 frames"),
    "colour": ({"PhotometricInterpretation": "RGB"}, "PhotometricInterpretation is RGB"),
    "no pixel data": ({"PixelData": None}, "no pixel data"),
    "DICOMDIR": ({"directory": True}, "a DICOMDIR"),
    "film": ({"film": True}, "MPEG2 .* which pydicom does not read"),
    "too many bits": ({"BitsStored": 24}, "BitsStored is 24; expected 1 to 16"),
    "too large": ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels; the limit is"),
    "cut off": ({"Rows": 31}, "cut off: 2,400 of 2,480 bytes of pixel data"),
    "no scale": ({"RescaleSlope": 0, "RescaleIntercept": 5}, "RescaleSlope is 0"),
    "narrow window": ({"WindowCenter": 5, "WindowWidth": 0.5}, "WindowWidth is 0.5; expected at least 1 for LINEAR"),
    "empty window": ({**WINDOW, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "WindowWidth is 0; expected above 0"),
    "odd function": ({**WINDOW, "VOILUTFunction": "CUBIC"}, "VOILUTFunction is CUBIC; expected LINEAR"),
    "unlike windows": ({"WindowCenter": [1, 2], "WindowWidth": 5}, "2 WindowCenter and 1 WindowWidth"),
    "short LUT": ({"VOILUTSequence": "short"}, "10 entries up to 9; its LUTDescriptor tells of 20 entries of 12 bits"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_case_19_refusals(tmp_path: Path, case: str) -> None:
    elements, message = BROKEN[case]
    made = dataset(stored(12) | 1024)
    if elements.get("VOILUTSequence") == "short":
        elements = {"VOILUTSequence": lut(np.arange(10), 0, 12)}
        elements["VOILUTSequence"][0].LUTDescriptor = [20, 0, 12]
    for name, value in elements.items():
        if value is None:
            delattr(made, name)
        elif name == "directory":
            made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
        elif name == "film":
            made.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
            made.file_meta.TransferSyntaxUID = MPEG2MPML
            made["PixelData"].is_undefined_length = True
        else:
            setattr(made, name, value)
    with pytest.raises(DataError, match=message) as refused:
        read_dicom(save(tmp_path / "a.dcm", made))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"<html>" * 99, "not a DICOM file"), (b"\0" * 128 + b"DICM", "no pixel data"), (None, "No such")],
)
def test_case_19_not_dicom(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.dcm").write_bytes(content)
    for reader in (read_dicom, dicom_size):
        with pytest.raises(DataError, match=message):
            reader(tmp_path / "a.dcm")


def test_case_19_cut_anywhere(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.dcm", dataset(stored(12), **WINDOW)).read_bytes()
    for length in range(1, len(whole), 41):
        (tmp_path / "b.dcm").write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_dicom(tmp_path / "b.dcm")
