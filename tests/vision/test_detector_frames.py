"""Frames go into detectors as torchvision would have them, and take no more memory for being large."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from gemel_ray.engine.workspace import peak_bytes
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.detector_frames import FrameTransform, shrunk
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import task_for

# Sizes a detector asks for (as FCOS and Faster R-CNN do, and as SSD does), and frames larger, smaller, odd and thin.
SIZES = [{"min_size": 96, "max_size": 160}, {"min_size": 320, "max_size": 640}, {"fixed_size": (320, 300)}]
FRAMES = [(360, 640), (640, 360), (1080, 1920), (480, 480), (97, 61), (33, 700), (320, 320), (240, 1201)]
SPEC = ModelSpec(architecture="fcos_resnet18_half", classes=("background", "car", "person"))


def frame_of(height_width):
    """Something with edges and with gradients, where a shift by half a pixel would show."""
    down, along = np.mgrid[: height_width[0], : height_width[1]]
    colours = [
        down * 3 + along,
        (down // 9 + along // 7) % 2 * 255,
        np.random.default_rng(0).integers(0, 256, down.shape),
    ]
    return (np.stack(colours, axis=-1) % 256).astype(np.uint8)


def both_of(sizes):
    """torchvision's transform, and ours with the same settings."""
    given = {"min_size": 1, "max_size": 1, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]} | sizes
    return GeneralizedRCNNTransform(**given).eval(), FrameTransform(**given).eval()


def as_uint8(frame):
    return torch.from_numpy(frame).permute(2, 0, 1)


@pytest.mark.parametrize("height_width", FRAMES)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_frame_is_resized_as_torchvision_does(sizes, height_width):
    plain, ours = both_of(sizes)
    frame = as_uint8(frame_of(height_width))
    (wanted, _), (found, _) = plain([frame.float() / 255]), ours([frame])
    # torchvision rounds a side of 320 to 319 now and then, as 320 / 1080 * 1080 may be a little less in floats.
    assert all(abs(one - other) <= 1 for one, other in zip(found.image_sizes[0], wanted.image_sizes[0], strict=True))
    if found.image_sizes == wanted.image_sizes:
        torch.testing.assert_close(found.tensors, wanted.tensors, rtol=0, atol=1e-3)


@pytest.mark.parametrize("height_width", FRAMES)
def test_boxes_to_learn_from_are_resized_with_their_frame(height_width):
    plain, ours = both_of(SIZES[1])
    frame, boxes = as_uint8(frame_of(height_width)), torch.tensor([[3.0, 5.0, 30.0, 31.0]])
    (_, wanted), (_, found) = plain([frame.float()], [{"boxes": boxes}]), ours([frame], [{"boxes": boxes}])
    torch.testing.assert_close(found[0]["boxes"], wanted[0]["boxes"], rtol=0.01, atol=0)
    assert boxes.tolist() == [[3.0, 5.0, 30.0, 31.0]]


def test_floats_are_taken_as_ever():
    plain, ours = both_of(SIZES[0])
    frame = as_uint8(frame_of((200, 301))).float() / 255
    assert torch.equal(ours([frame])[0].tensors, plain([frame])[0].tensors)


def test_a_frame_of_the_size_that_is_asked_for_stays_bit_for_bit():
    frame = as_uint8(frame_of((96, 160)))
    assert torch.equal(shrunk(frame, (96, 160)), frame.float() / 255)


def test_a_detector_answers_a_large_frame_as_torchvisions_would_in_the_frames_own_coordinates():
    torch.manual_seed(1)
    model = build_model(SPEC.model_copy(update={"options": {"score_thresh": 0.01, "detections_per_img": 20}}))
    task = task_for(SPEC, score_threshold=0.0)
    frame = frame_of((540, 960))
    with torch.inference_mode():
        (found,) = task.answers(model(task.prepare([frame])), [frame])
        model.transform = GeneralizedRCNNTransform(96, 160, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()
        (plain,) = task.answers(model([as_uint8(frame).float() / 255]), [frame])
    assert len(found.boxes) == len(plain.boxes) > 0
    assert max(box.x + box.width for box in found.boxes) > 480
    for box, wanted in zip(found.boxes, plain.boxes, strict=True):
        assert (box.x, box.y, box.score) == pytest.approx((wanted.x, wanted.y, wanted.score), abs=1e-2)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_frame_takes_the_same_workspace_whatever_its_size(frames):
    model, task = build_model(SPEC), task_for(SPEC)

    def taken(height_width):
        images = [np.zeros((*height_width, 3), np.uint8)] * frames
        with torch.inference_mode():
            return peak_bytes(lambda: task.answers(model(task.prepare(images)), images), torch.device("cpu"))

    assert taken((1080, 1920)) == taken((2160, 3840)) <= 1.02 * taken((360, 640))


class OwnDetector(nn.Module):
    """Of somebody who knows nothing of uint8."""

    def forward(self, images):
        assert all(image.is_floating_point() and image.max() <= 1 for image in images)
        self.seen = images
        return []


class OwnTransform(GeneralizedRCNNTransform):
    """Of somebody who resizes otherwise."""


def own_detector(*, num_classes):
    return OwnDetector()


def own_transform(*, num_classes):
    model = build_model(SPEC)
    model.transform = OwnTransform(96, 160, [0.5] * 3, [0.5] * 3)
    return model


def test_a_detector_of_ones_own_sees_floats_as_it_always_did():
    spec = ModelSpec(factory=f"{__name__}:own_detector", task="detection", classes=SPEC.classes)
    model, frame = build_model(spec, allow_factories=True), frame_of((40, 60))
    model(task_for(spec).prepare([frame]))
    assert torch.equal(model.seen[0], as_uint8(frame).float() / 255)


def test_a_resizing_of_ones_own_is_left_alone():
    spec = ModelSpec(factory=f"{__name__}:own_transform", task="detection", classes=SPEC.classes)
    model = build_model(spec, allow_factories=True)
    assert type(model.transform) is OwnTransform
    with torch.inference_mode():
        assert len(model(task_for(spec).prepare([frame_of((200, 300))]))) == 1


def test_a_frame_that_must_not_be_written_to_is_copied():
    frame = frame_of((40, 60))
    frame.flags.writeable = False
    (tensor,) = task_for(SPEC).prepare([frame])
    assert torch.equal(tensor, torch.tensor(frame).permute(2, 0, 1))
