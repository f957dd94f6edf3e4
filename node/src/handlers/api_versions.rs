//! ApiVersions (key 18): what this node serves. KIP-35, KIP-511, KIP-584.

use flumen_wire::ErrorCode;
use flumen_wire::api::SUPPORTED;
use flumen_wire::codec::Writer;
use flumen_wire::frame::encode_response;
use flumen_wire::messages::api_versions_request::ApiVersionsRequest;
use flumen_wire::messages::api_versions_response::{
    ApiVersion, ApiVersionsResponse, FinalizedFeatureKey, SupportedFeatureKey,
};

use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// Features that this node knows, with the levels that it can work at; the highest is in force. Clients take
/// `group.version` 1 as leave to use the consumer protocol (KIP-848). `transaction.version` 2 would be leave to use what
/// is not here yet, so that stays out.
pub(crate) const FEATURES: &[(&str, i16, i16)] = &[("group.version", 0, 1), ("metadata.version", 7, 30)];

/// The first version in which a feature may have 0 as its lowest level.
const LEVEL_0_VERSION: i16 = 4;

pub(super) fn handle(shard: &Shard, request: &Request) -> Result<Response, Refusal> {
    let body: ApiVersionsRequest<'_> = request.body()?;
    let is_named = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.' || c == b'-')
            && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
            && name.bytes().last().is_some_and(|c| c.is_ascii_alphanumeric())
    };
    let named =
        request.version < 3 || is_named(body.client_software_name) && is_named(body.client_software_version);
    if !named {
        let refused =
            ApiVersionsResponse { error_code: ErrorCode::InvalidRequest.code(), ..Default::default() };
        return request.respond(&refused);
    }
    let image = shard.image();
    let mut answer = table();
    // Clients from 3.3 to 3.8 take a lowest level of 0 for a broken answer, and end. Version 4 says that 0 is understood.
    let is_understood = |min_version: i16| min_version > 0 || request.version >= LEVEL_0_VERSION;
    answer.supported_features = FEATURES
        .iter()
        .filter(|(_, min_version, _)| is_understood(*min_version))
        .map(|(name, min_version, max_version)| SupportedFeatureKey {
            name,
            min_version: *min_version,
            max_version: *max_version,
        })
        .collect();
    answer.finalized_features_epoch = image.offset() as i64;
    answer.finalized_features = image
        .features()
        .map(|(name, level)| FinalizedFeatureKey { name, max_version_level: level, min_version_level: level })
        .collect();
    request.respond(&answer)
}

/// The answer to a version that we do not know: in version 0, with the table, so that the client can go on.
pub(super) fn unsupported(correlation_id: i32) -> Response {
    let answer = ApiVersionsResponse { error_code: ErrorCode::UnsupportedVersion.code(), ..table() };
    let mut writer = Writer::new();
    encode_response(&mut writer, correlation_id, 0, &answer);
    Response::encoded(writer)
}

fn table() -> ApiVersionsResponse<'static> {
    let api_keys = SUPPORTED
        .iter()
        .map(|api| ApiVersion { api_key: api.key as i16, min_version: api.min, max_version: api.max })
        .collect();
    ApiVersionsResponse { api_keys, ..ApiVersionsResponse::default() }
}
