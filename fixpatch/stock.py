"""The classes of Keras that compute on tensors, and nothing else: what the configuration of a model may name.

What takes a function, reads a file or wraps another framework is not among them.
"""

from __future__ import annotations


def names(listed: str) -> frozenset[str]:
    """Return the words of `listed`."""
    return frozenset(listed.split())


MODELS = names("Functional Model Sequential")
LAYERS = names(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention AugMix
    AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D
    BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose
    ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose
    Convolution3D Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D DepthwiseConv2D
    Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D
    GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer LSTM LSTMCell LayerNormalization
    LeakyReLU Masking MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MixUp
    MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization RNN RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip
    RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape
    Resizing ReversibleEmbedding SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D
    SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D
    UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """
)
INITIALIZERS = names(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform Ones
    Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros constant
    glorot_normal glorot_uniform he_normal he_uniform identity lecun_normal lecun_uniform ones orthogonal random_normal
    random_uniform truncated_normal variance_scaling zeros
    """
)
REGULARIZERS = names("L1 L1L2 L2 OrthogonalRegularizer l1 l1_l2 l2 orthogonal_regularizer")
CONSTRAINTS = names("MaxNorm MinMaxNorm NonNeg UnitNorm max_norm min_max_norm non_neg unit_norm")
POLICIES = names("DTypePolicy DTypePolicyMap FloatDTypePolicy QuantizedDTypePolicy")
ACTIVATIONS = names(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
    log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid
    sparsemax squareplus swish tanh tanh_shrink threshold
    """
)
OPERATIONS = {
    "numpy": """
        Abs Absolute Add Amax Amin Any All Append Arctan Arctan2 Argmax Argmin Average BroadcastTo Ceil Clip
        Concatenate Copy Cos Cosh Cumprod Cumsum Diagonal Diff Divide DivideNoNan Dot Einsum Equal Exp Exp2 ExpandDims
        Expm1 Fabs Flip Fliplr Flipud Floor FloorDivide FullLike Fmax Fmin GetItem Greater GreaterEqual Hstack Hypot
        Isfinite Isinf Isnan Less LessEqual Log Log10 Log1p Log2 Logaddexp LogicalAnd LogicalNot LogicalOr Matmul Max
        Maximum Mean Median Min Minimum Mod Moveaxis Multiply NanToNum Negative NotEqual OnesLike Outer Pad Power Prod
        Ravel Reciprocal Repeat Reshape Roll Rot90 Round Sign Sin Sinh Sort Split Sqrt Square Squeeze Stack Std
        Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Tile Transpose Tril Triu TrueDivide Trunc Var Vdot
        Vstack Where ZerosLike
        """,
    "nn": """
    AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm Celu Conv ConvTranspose DepthToSpace DepthwiseConv
    DotProductAttention Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu LogSigmoid LogSoftmax
    MaxPool Moments Normalize OneHot RMSNorm Relu Relu6 Selu SeparableConv Sigmoid Silu SoftShrink Softmax Softplus
    Softsign SpaceToDepth SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink Threshold Unfold
    """,
    "core": "Cast SaturateCast Slice StopGradient Unstack",
    "image": "CropImages ExtractPatches GaussianBlur HSVToRGB PadImages RGBToGrayscale RGBToHSV Resize",
    "linalg": "Norm",
    "math": "Erf Erfinv Logsumexp Rsqrt TopK",
}
# For what a nested model was once compiled with; Keras builds that too.
LOSSES = names(
    """
    BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy CategoricalFocalCrossentropy CategoricalHinge
    CosineSimilarity Dice Hinge Huber KLDivergence LogCosh MeanAbsoluteError MeanSquaredError Poisson
    SparseCategoricalCrossentropy SquaredHinge Tversky
    """
)
METRICS = names(
    """
    AUC Accuracy BinaryAccuracy BinaryCrossentropy CategoricalAccuracy CategoricalCrossentropy CategoricalHinge
    CosineSimilarity F1Score FalseNegatives FalsePositives Hinge KLDivergence Mean MeanAbsoluteError MeanSquaredError
    Poisson Precision Recall SparseCategoricalAccuracy SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy
    SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives TruePositives
    """
)
OPTIMIZERS = names(
    "Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer Muon Nadam RMSprop SGD"
)
SCHEDULES = names(
    """
    CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay PolynomialDecay
    """
)

MODULES: dict[str, frozenset[str]] = {
    "keras": names("DTypePolicy FloatDTypePolicy Model Sequential"),
    "keras.models": names("Model Sequential"),
    "keras.src.models.functional": names("Functional"),
    "keras.src.models.model": names("Model"),
    "keras.src.models.sequential": names("Sequential"),
    "keras.layers": LAYERS,
    "keras.src.applications.convnext": names("LayerScale StochasticDepth"),
    "keras.src.applications.inception_resnet_v2": names("CustomScaleLayer"),
    "keras.initializers": INITIALIZERS,
    "keras.regularizers": REGULARIZERS,
    "keras.constraints": CONSTRAINTS,
    "keras.dtype_policies": POLICIES,
    "keras.mixed_precision": names("Policy"),  # of Keras 2
    "keras.quantizers": names("AbsMaxQuantizer Float8QuantizationConfig Int4QuantizationConfig Int8QuantizationConfig"),
    "keras.losses": LOSSES,
    "keras.metrics": METRICS,
    "keras.optimizers": OPTIMIZERS,
    "keras.optimizers.schedules": SCHEDULES,
    **{f"keras.src.ops.{module}": names(listed) for module, listed in OPERATIONS.items()},
}
# Layers that later versions have not, or by another name: `keras1` translates some of them and refuses the others.
KERAS_1 = names(
    """
    AtrousConvolution1D AtrousConvolution2D ConvRecurrent2D Deconvolution2D Highway LocallyConnected1D
    LocallyConnected2D MaxoutDense Merge ParametricSoftplus SReLU ThresholdedReLU TimeDistributedDense
    """
)
# Files of Keras 1 and 2 name no module.
UNQUALIFIED = (
    MODELS
    | LAYERS
    | KERAS_1
    | INITIALIZERS
    | REGULARIZERS
    | CONSTRAINTS
    | POLICIES
    | names("GroupedQueryAttention Policy")
)
# Classes of Keras that run what the file holds, or read what it names, whoever says they are his own.
REFUSED = names(
    "Lambda TFSMLayer TorchModuleWrapper JaxLayer FlaxLayer StringLookup IntegerLookup TextVectorization __lambda__"
)
