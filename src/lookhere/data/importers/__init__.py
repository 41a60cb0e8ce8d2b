"""Readers of the data that people hold: each source becomes a manifest with aligned saliency maps."""

from __future__ import annotations

from lookhere.data.importers import (
    coco,
    cvat,
    dnetpad,
    egd_cxr,
    faces,
    fixations,
    label_studio,
    labelme,
    livdet_iris,
    mask_folder,
    mimic_cxr,
    reflacx,
    salicon,
)
from lookhere.data.importers.base import Importer

IMPORTERS: dict[str, Importer] = {
    importer.name: importer
    for importers in (
        egd_cxr.IMPORTERS,
        reflacx.IMPORTERS,
        mimic_cxr.IMPORTERS,
        livdet_iris.IMPORTERS,
        faces.IMPORTERS,
        dnetpad.IMPORTERS,
        label_studio.IMPORTERS,
        cvat.IMPORTERS,
        coco.IMPORTERS,
        labelme.IMPORTERS,
        mask_folder.IMPORTERS,
        fixations.IMPORTERS,
        salicon.IMPORTERS,
    )
    for importer in importers
}
