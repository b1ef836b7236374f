"""Fields of the create requests of the three kinds of job.

The SDK is `fireworks-ai` 1.2.30; the descriptions are those of the gateway, 4.259.0 and, of supervised jobs,
5.10.0. The schedule of the other two kinds is in the models that are generated from 5.10.0, of which the
description itself is not at hand.
"""

from orchestrate.providers.fields import Fields

_SHARED = """
    dataset displayName reservationTarget awsS3Config.credentialsSecret
    awsS3Config.iamRoleArn azureBlobStorageConfig.credentialsSecret
    azureBlobStorageConfig.managedIdentityClientId azureBlobStorageConfig.tenantId wandbConfig.apiKey
    wandbConfig.enabled wandbConfig.entity wandbConfig.project wandbConfig.runId
"""
_TRAINING = """
    baseModel batchSize batchSizeSamples samplerCheckpointSaveIntervalSteps epochs gradientAccumulationSteps
    jinjaTemplate learningRate learningRateWarmupSteps loraRank maxContextLength optimizerWeightDecay
    outputModel region warmStartFrom
"""
_LOSS = """
    lossConfig.dpo.beta lossConfig.dpo.refCacheConcurrency lossConfig.dpo.refCacheBatchSize
    lossConfig.klBeta lossConfig.method
"""
_ADAPTER = """
    trainingConfig.loraAlpha trainingConfig.loraDropout trainingConfig.loraTargetModules
"""


def _inside(names: str) -> str:
    return " ".join(f"trainingConfig.{name}" for name in names.split())


FIELDS = {
    "sft": Fields(
        sdk=f"""{_SHARED} {_TRAINING} earlyStop evalAutoCarveout evaluationDataset isTurbo mtpEnabled
            rendererHuggingFaceRepoId mtpFreezeBaseModel mtpNumDraftTokens nodes
            usePurpose useReservation metricsFileSignedUrl""",
        specification="""lrScheduler.constant lrScheduler.cosine.decayRatio
            lrScheduler.cosine.minLrRatio lrScheduler.linear.decayRatio lrScheduler.linear.minLrRatio
            purpose""",
    ),
    "dpo": Fields(
        sdk=f"{_SHARED} {_inside(_TRAINING)} {_LOSS} rendererHuggingFaceRepoId useReservation",
        specification=f"{_ADAPTER} lossConfig.orpo.lambda purpose",
        documentation="trainingConfig.lrScheduler",
    ),
    "rft": Fields(
        sdk=f"""{_SHARED} {_inside(_TRAINING)} {_LOSS} evaluator chunkSize evalAutoCarveout evaluationDataset
            inferenceParameters.extraBody inferenceParameters.maxOutputTokens
            inferenceParameters.responseCandidatesCount inferenceParameters.temperature
            inferenceParameters.topK inferenceParameters.topP maxConcurrentEvaluations maxConcurrentRollouts
            maxInferenceReplicaCount mcpServer nodeCount""",
        specification=f"{_ADAPTER} lossConfig.orpo.lambda purpose",
        documentation="trainingConfig.lrScheduler useReservation",
    ),
}
"""By the method of the spec."""
