"""Artifacts that are wrong, and signed as if they were right."""

import shutil

import onnx_ir as ir
from onnx_ir.passes import common

from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.artifacts.onnx_file import write_model


def changed(exported, folder, change):
    """A copy with another graph, signed as if it were right."""
    shutil.copytree(exported, folder)
    manifest = open_artifact(folder).manifest
    model = ir.load(folder / "model.onnx")
    common.InlinePass()(model)
    change({node_key(node): node for node in model.graph}, model)
    write_model(model, folder)
    write_manifest(folder, manifest)
    return folder


def node_key(node):
    return node.metadata_props.get("adakron_export.module", "") + ":" + node.op_type
