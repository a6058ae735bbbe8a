"""What a run is: one frozen pydantic tree. `overrides.py` builds it from presets, files, words and samples.

The text under a field is its meaning, shown by `aneurysm-ray config`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from aneurysm_ray.search_config import ChosenConfig, TuneConfig
from aneurysm_ray.section import Fraction, Positive, Section, Seed, Triple, VoxelTriple, Window

FrameBase = Literal["auto", 0, 1]

VOLUME_FORMAT: Literal[2] = 2
"""What a stored volume means; raised whenever equal settings give other voxels than before."""


class VolumeConfig(Section):
    """How a series becomes a stored volume. Part of a prepared set's identity: changing it means preparing anew, and
    what trains on a set, or predicts with what was trained, takes the set's own."""

    format: Literal[2] = VOLUME_FORMAT
    """What a stored volume means, for the record: sets and runs of another format are refused."""

    extent_mm: Triple = (180.0, 190.0, 150.0)
    """Region of interest (z, y, x) in mm: a box from the top of the head, centred on it; smaller scans keep theirs. It
    holds the circle of Willis, and the carotids and the basilar artery below the skull base."""
    spacing_mm: Triple = (0.8, 0.5, 0.5)
    """Voxel spacing (z, y, x) of stored volumes in mm."""
    window_hu: Window = (-100.0, 700.0)
    """CT only: Hounsfield units mapped to 0 and to 255; clipped outside."""
    window_medians: Window = (0.0, 5.0)
    """MR only: what maps to 0 and to 255, in medians of the brain, since MR has no unit; clipped outside. Arteries are
    up to 4 of them bright in time of flight, veins up to 3 after contrast, fluid up to 4 in T2."""
    dtype: Literal["uint8", "int16"] = "uint8"
    """Stored values: uint8 spans the window in 255 steps; int16 keeps Hounsfield units (CT) or stored units, times a
    power of two where they are coarse (MR), and is windowed when it is read."""
    masks: bool = True
    """Store the masks of segmentations/ with their series: vessels by class and, of synthetic data, domes."""


class PrepareConfig(Section):
    """How preparation runs; nothing here changes what is stored, except the patient key and the points' frames."""

    @model_validator(mode="before")
    @classmethod
    def _without_secret(cls, values: Any) -> Any:
        """Leave out the key that models and runs of earlier versions hold, so that it travels no further."""
        return {k: v for k, v in values.items() if k != "patient_key"} if isinstance(values, dict) else values

    timeout_seconds: Positive = 600.0
    """A series that takes longer is rejected with reason `timeout`."""
    memory_mb: Annotated[int, Field(ge=256)] = 6000
    """Address space one series may use, in MiB; more is rejected with reason `memory`."""
    patient_key_file: str = ""
    """File that holds the secret key of the patient hashes, readable by its owner alone; the environment variable
    ANEURYSM_RAY_PATIENT_KEY goes before it. Empty: a random key, kept beside the volumes."""
    digest: Literal["stat", "content"] = "stat"
    """What tells that a source changed: names, sizes and modification times, or a hash of all bytes (a second read)."""
    frame_base: FrameBase = "auto"
    """What `f` of the localizers counts from: auto finds it in the table, where two releases of it differ."""


class FoldsConfig(Section):
    """Patient-wise folds, stratified by presence, location and modality."""

    count: Annotated[int, Field(ge=2, le=20)] = 5
    """Number of folds."""
    seed: Seed = 0
    """Seed of the assignment; the same patients and seed give the same folds."""
    by: Literal["patient", "site"] = "patient"
    """site: folds hold out whole sites of series.csv or participants.tsv, one each where `count` is their number."""
    file: str = ""
    """Folds of one's own instead: a CSV with fold and series_uid or patient, or nnU-Net's splits_final.json."""


class ModelConfig(Section):
    """The network. Every network maps a patch to a grid of 14 logits per cell; a pooled one's grid is 1x1x1."""

    name: str = "resnet3d18"
    """A key of `learning.models.MODELS`: resnet3d10, resnet3d18, resnet3d34, resnet3d50, small3d."""
    head: Literal["pooled", "grid"] = "pooled"
    """pooled: one vector of logits per patch. grid: lesion, its location and vessel per cell at the output stride."""
    width: Annotated[int, Field(ge=4, le=256)] = 64
    """Channels of the first stage; the others are its multiples."""
    stem_stride: Literal[1, 2, 4] = 2
    """Stride of the first convolution; each later stage halves the resolution."""
    output_stride: Literal[1, 2, 4, 8, 16, 32] = 4
    """grid head only: voxels per grid cell along each axis; a dome of 4 mm is five to eight voxels wide."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the last layer."""


class PatchConfig(Section):
    """The crops a network sees."""

    size: VoxelTriple = (40, 64, 64)
    """Patch size (z, y, x) in voxels of the stored volume; 32 mm at the default spacing. In patches of 50 mm a pooled
    network could not find a lesion at all."""
    border_mm: Annotated[float, Field(ge=0)] = 7.0
    """A point nearer than this to the patch's border makes its label neither positive nor negative; patches around a
    point hold it further inside than this."""
    radius_mm: Positive = 3.0
    """grid head: cells whose centre lies within this distance of a point, or within a larger known radius, are
    positive."""
    ignore_mm: Positive = 6.0
    """grid head: cells beyond `radius_mm` and within this distance are ignored."""


class SamplerConfig(Section):
    """Which patches of which volumes are drawn for training."""

    patches_per_volume: Annotated[int, Field(ge=1)] = 16
    """Patches drawn per training volume and epoch, on average. Of a scan that holds 150 patches side by side this is
    little; with 4 of them, validation took longer than training, and networks were far from having learnt all."""
    positive_fraction: Fraction = 0.5
    """Share of patches drawn around a point. The v1 preset draws them as they come (see `oversample`)."""
    oversample: bool = True
    """False: volumes are drawn uniformly and patches are centred anywhere, so positives are as rare as they are."""
    location_balance: Fraction = 0.5
    """0: points are drawn as frequently as they occur; 1: every location equally often."""
    hard_negative_fraction: Fraction = 0.3
    """Share of the negative patches taken where the model scored high away from every aneurysm."""
    hard_negative_every: Annotated[int, Field(ge=1)] = 5
    """Epochs between two searches for hard negatives."""
    hard_negative_series: Annotated[int, Field(ge=1)] = 64
    """Series that one search goes through; the next search takes others."""
    site_fraction: Fraction = 0.2
    """Share of the other negative patches taken at sites of points of other series of the modality: without them a
    network learns to tell where aneurysms sit, and not an aneurysm from an artery."""
    vessel_fraction: Fraction = 0.3
    """Share of them taken on vessels. The rest is taken anywhere: a network that has hardly seen sinuses, bone and the
    region's edge raises its false alarms there."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.site_fraction + self.vessel_fraction > 1:
            raise ValueError(
                f"sampler.site_fraction = {self.site_fraction:g} and sampler.vessel_fraction = "
                f"{self.vessel_fraction:g} are shares of the same patches and may not exceed 1 together"
            )
        return self


class AugmentConfig(Section):
    """Random changes to a training batch, made on its device."""

    flip: Fraction = 0.5
    """Probability of a left-right flip; left and right labels change places with it."""
    turn: Fraction = 0.0
    """Probability of a turn into any of the 48 orientations of a cube, for patches that are cubes of equal spacing: few
    aneurysms then teach many shapes, but of a turned patch no location is learnt."""
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 12.0
    """Largest rotation about each axis, degrees."""
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest relative change of size."""
    translate: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift as a share of the patch's size."""
    affine_probability: Fraction = 0.5
    """Probability of the rotation, scaling and shift."""
    gamma: Annotated[float, Field(ge=0, le=2)] = 0.2
    """Largest logarithm of an exponent of intensity, up or down."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.08
    """Largest shift of intensity; an image spans 0 to 1."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest relative change of contrast."""
    curve: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift, up or down, of five points of a rising curve that maps intensity: scanners, kernels and contrast
    media differ in how bright bone, blood and tissue are beside each other."""
    blur: Fraction = 0.1
    """Probability of a blur, as of other kernels and thicker slices."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Largest standard deviation of added Gaussian noise."""
    mixup: Fraction = 0.0
    """Probability of mixing each patch with another of the batch."""


class LossConfig(Section):
    """How logits are held against targets."""

    name: Literal["bce", "focal"] = "focal"
    """bce: binary cross-entropy with logits. focal: Lin et al. 2017, which weighs hard examples more."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """focal: exponent of the down-weighting of easy examples; 0 is cross-entropy."""
    focal_alpha: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """focal: weight of positives, 1 - alpha that of negatives; -1 gives both 1."""
    class_weights: bool = False
    """Weigh each label's positives by negatives/positives among the training patches, at most `max_class_weight`."""
    max_class_weight: Positive = 20.0
    """Ceiling of a class weight."""
    positive_weight: Positive = 1.0
    """Weight of every positive target, of a grid's cells too, on top of class weights."""
    present_weight: Positive = 1.0
    """Weight of the series-level label against the mean of the 13 locations."""
    tversky_weight: Annotated[float, Field(ge=0)] = 0.25
    """grid head: weight of the Tversky loss (Salehi et al. 2017) of patches with a lesion, beside the cells'
    cross-entropy; it counts a missed dome for more than a false alarm of its size."""
    location_weight: Annotated[float, Field(ge=0)] = 0.02
    """grid head: weight of the location of lesions' cells, which must not starve the detection."""
    vessel_weight: Annotated[float, Field(ge=0)] = 0.1
    """grid head: weight of the vessels' loss in series that have a mask."""
    series_weight: Annotated[float, Field(ge=0)] = 0.05
    """grid head: weight of the loss of the patch's highest lesion logits, beside the loss of its cells. That loss is
    ten times the cells' own at first: a weight of 0.5 kept a small network from learning where lesions are."""


class OptimConfig(Section):
    """The optimiser and its schedule: AdamW, linear warm-up, cosine decay, clipping, averaged weights."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Epochs of training; the schedule spans them."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Patches per step over all workers together."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches per step and worker; the step's gradient is that of the whole batch."""
    lr: Positive = 7e-4
    """Peak learning rate. At 3e-3 ResNets cannot even memorise 200 patches; those of 34 layers want about 4e-4."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Decoupled weight decay, on weights of convolutions and linear layers only."""
    warmup: Fraction = 0.05
    """Share of all steps in which the rate climbs from 0 to its peak."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per step of the averaged weights that validation and inference use; 0 uses the raw weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; auto is bfloat16 on CUDA and on CPUs that have instructions for it (avx512_bf16,
    AMX), and float32 on others."""
    compile: bool = False
    """Pass the network through torch.compile: a minute or more at the start, faster steps after."""
    deterministic: Literal["auto", "always", "never"] = "auto"
    """Use deterministic algorithms where torch has them; equal seeds then give equal results on one device, and a run
    that goes on the numbers of one that never stopped. auto: on CPUs, where they cost nothing; on GPUs they forbid the
    fastest convolutions."""

    @field_validator("deterministic", mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        return {True: "always", False: "never"}.get(value, value) if isinstance(value, bool) else value


class InferenceConfig(Section):
    """How a volume is scored: overlapping windows, one stitched grid, top-k pooling."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring windows as a share of the patch's size."""
    window: Annotated[int, Field(ge=1, le=16)] = 3
    """grid head: windows are this many patches long along each axis, at most the volume: cells do not depend on what
    else lies in a window, and large windows overlap less. A pooled head's windows are patches."""
    gate: bool = True
    """grid head: a lesion is at most twice as probable as the most probable vessel near it, if masks taught vessels."""
    atlas: bool = True
    """A lesion is less probable where no aneurysm of the training series was near."""
    top_k: Annotated[int, Field(ge=1)] = 2
    """A series' probability is the mean of this many highest cells (grid head) or windows (pooled head)."""
    flip: bool = False
    """Average with the mirrored volume, its left and right labels swapped back."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Windows per forward pass."""
    candidates: Annotated[int, Field(ge=1)] = 20
    """Most candidate points kept per series."""
    candidate_distance_mm: Positive = 8.0
    """Candidates nearer than this to a stronger one are dropped."""
    operating: Annotated[str, Field(pattern=r"^(sensitivity|false_alarms)=(0?\.\d+|[01](\.0*)?)$")] = "sensitivity=0.9"
    """Where a series is flagged for a label, as chosen out of fold: sensitivity=S, or false_alarms=F per scan."""


class ValidationConfig(Section):
    """How a fold is validated during its training; after the last epoch always in full, and that score is reported."""

    every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two validations."""
    series: Annotated[int, Field(ge=0)] = 64
    """Most series validated before the last epoch, always the same ones, of each modality with and without aneurysm in
    proportion; 0: all. An AUC of 64 is known to 0.07, enough to see whether a fold learns."""
    full_every: Annotated[int, Field(ge=0)] = 0
    """Epochs between two validations of all series as `inference` says; 0: after the last epoch alone. All others are
    quick: without overlap of windows and without mirroring, at up to a sixteenth of the cost."""


class FeedConfig(Section):
    """How volumes reach the training loop."""

    cache_gb: Annotated[float, Field(ge=-1)] = -1.0
    """Largest size in GB of the cache on disk that the workers of a node share, from which patches are cut: a volume
    takes about two thirds of its voxels' bytes. -1: half of what is free there; 0: none. Of a set that is larger than
    what is given here, patches of a volume are drawn close together in an epoch."""
    cache_dir: str = ""
    """Folder of the cache; empty: a folder in the system's temporary directory, named by the volumes."""
    threads: Annotated[int, Field(ge=0)] = 2
    """Threads that make batches ahead of the training step, per worker; 0 makes them in the loop itself. Each takes a
    core while it works: where a worker computes on one of two cores, one thread is faster than two."""
    prefetch: Annotated[int, Field(ge=1)] = 4
    """Batches made ahead."""


class ResourcesConfig(Section):
    """What a run takes from the cluster."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Training workers per fold, in data-parallel lockstep."""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """Fewest workers to go on with when nodes are lost, `workers` at most; 0: exactly `workers`."""
    gpus_per_worker: Annotated[float, Field(ge=-1)] = -1.0
    """GPUs per worker, fractions allowed; -1: one where the cluster has any, else none."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """CPUs per worker, and the threads it computes with; 0: an equal share of a node's, per GPU or per worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker or node losses a fold survives before it fails."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than workers = {self.workers}")
        if self.gpus_per_worker > 1 and not self.gpus_per_worker.is_integer():
            raise ValueError(f"gpus_per_worker = {self.gpus_per_worker:g} is more than one GPU, and not a whole number")
        return self


class Config(Section):
    """All settings of a run."""

    seed: Seed = 0
    """Seed of everything random in training; draws derive from (seed, fold, epoch, rank)."""
    preset: str = ""
    """The preset this configuration started from, for the record."""
    stage: Literal["lesions", "vessels"] = "lesions"
    """vessels: a grid network learns vessels alone, from the series that have a mask, for `init` of another run."""
    control: Literal["", "shuffle"] = ""
    """shuffle: labels are permuted among all patients, the judges' too, so an honest score must come out at 0.5."""
    init: str = ""
    """Checkpoint or exported model whose matching weights training starts from; a run's folder: each fold from its own,
    dealt alike; starter: the package's own."""
    profile: bool = False
    """Look closely at some steps of each fold: `profile/` in its folder has a table of where their time went, and a
    trace."""
    tensorboard: bool = False
    """Also write every epoch's metrics as TensorBoard files, in `tensorboard/` of each fold."""
    tracker: Literal["", "mlflow", "wandb"] = ""
    """Also send every epoch, folds and trials as own runs. mlflow: to MLFLOW_TRACKING_URI; wandb: to `wandb/` here."""
    volume: VolumeConfig = VolumeConfig()
    prepare: PrepareConfig = PrepareConfig()
    folds: FoldsConfig = FoldsConfig()
    model: ModelConfig = ModelConfig()
    patch: PatchConfig = PatchConfig()
    sampler: SamplerConfig = SamplerConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    inference: InferenceConfig = InferenceConfig()
    validation: ValidationConfig = ValidationConfig()
    feed: FeedConfig = FeedConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tune: TuneConfig = TuneConfig()
    chosen: ChosenConfig = ChosenConfig()
