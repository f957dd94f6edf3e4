//! Which APIs and versions a node serves, and which headers go with them.
//!
//! Not everything that there is a codec for is served: [`SUPPORTED`] is what a node advertises, and [`accept`] what it
//! takes, which differs for Produce alone.

pub use crate::messages::ApiKey;

/// An API and the versions of it that are advertised, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiVersions {
    /// The API.
    pub key: ApiKey,
    /// The oldest version.
    pub min: i16,
    /// The newest version.
    pub max: i16,
}

const fn api(key: ApiKey, min: i16, max: i16) -> ApiVersions {
    ApiVersions { key, min, max }
}

/// What a node advertises, by rising key: each API with the whole range that Apache Kafka 4.3 has.
pub const SUPPORTED: &[ApiVersions] = &[
    // From 0, though 0 to 2 are refused: else older librdkafka takes it that compression is not supported and sends
    // plain batches (KAFKA-18659).
    api(ApiKey::Produce, 0, 13),
    api(ApiKey::Fetch, 4, 18),
    api(ApiKey::ListOffsets, 1, 11),
    api(ApiKey::Metadata, 0, 13),
    api(ApiKey::OffsetCommit, 2, 10),
    api(ApiKey::OffsetFetch, 1, 10),
    api(ApiKey::FindCoordinator, 0, 6),
    api(ApiKey::JoinGroup, 0, 9),
    api(ApiKey::Heartbeat, 0, 4),
    api(ApiKey::LeaveGroup, 0, 5),
    api(ApiKey::SyncGroup, 0, 5),
    api(ApiKey::DescribeGroups, 0, 6),
    api(ApiKey::ListGroups, 0, 5),
    api(ApiKey::ApiVersions, 0, 4),
    api(ApiKey::CreateTopics, 2, 7),
    api(ApiKey::DeleteTopics, 1, 6),
    api(ApiKey::DeleteRecords, 0, 2),
    api(ApiKey::InitProducerId, 0, 5),
    api(ApiKey::OffsetForLeaderEpoch, 2, 4),
    api(ApiKey::DescribeAcls, 1, 3),
    api(ApiKey::CreateAcls, 1, 3),
    api(ApiKey::DeleteAcls, 1, 3),
    api(ApiKey::DescribeConfigs, 1, 4),
    api(ApiKey::AlterConfigs, 0, 2),
    api(ApiKey::DescribeLogDirs, 1, 5),
    api(ApiKey::CreatePartitions, 0, 3),
    api(ApiKey::DeleteGroups, 0, 2),
    api(ApiKey::ElectLeaders, 0, 2),
    api(ApiKey::IncrementalAlterConfigs, 0, 1),
    api(ApiKey::ListPartitionReassignments, 0, 0),
    api(ApiKey::OffsetDelete, 0, 0),
    api(ApiKey::DescribeClientQuotas, 0, 1),
    api(ApiKey::DescribeUserScramCredentials, 0, 0),
    api(ApiKey::DescribeCluster, 0, 2),
    api(ApiKey::DescribeProducers, 0, 0),
    api(ApiKey::ConsumerGroupHeartbeat, 0, 1),
    api(ApiKey::ConsumerGroupDescribe, 0, 1),
    api(ApiKey::ListConfigResources, 0, 1),
    api(ApiKey::DescribeTopicPartitions, 0, 0),
];

/// A request that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// An API that is not advertised, by its number.
    Api(i16),
    /// A version that is not served, of an API that is.
    Version(ApiKey, i16),
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unsupported::Api(key) => write!(f, "API key {key} is not served"),
            Unsupported::Version(key, version) => {
                write!(f, "version {version} of {} is not served", key.name())
            }
        }
    }
}

impl std::error::Error for Unsupported {}

/// Whether a request is served, by the numbers in its header.
#[inline]
pub fn accept(api_key: i16, version: i16) -> Result<ApiKey, Unsupported> {
    let key = ApiKey::from_key(api_key).ok_or(Unsupported::Api(api_key))?;
    let Some(served) = SUPPORTED.iter().find(|api| api.key == key) else {
        return Err(Unsupported::Api(api_key));
    };
    // What is advertised and has no codec is refused (Produce 0 to 2).
    let (min, _) = key.versions();
    if (served.min.max(min)..=served.max).contains(&version) {
        Ok(key)
    } else {
        Err(Unsupported::Version(key, version))
    }
}

/// Whether lengths are compact and structures end with tagged fields. Also for versions that are not known, since a
/// header must be read to answer that its version is not known.
#[inline]
pub const fn is_flexible(key: ApiKey, version: i16) -> bool {
    match key.first_flexible_version() {
        Some(first) => version >= first,
        None => false,
    }
}

/// The version of a request's header: 1, or 2 with tagged fields.
#[inline]
pub const fn request_header_version(key: ApiKey, version: i16) -> i16 {
    if is_flexible(key, version) { 2 } else { 1 }
}

/// The version of a response's header: 0, or 1 with tagged fields. That of ApiVersions is always 0, as its reader
/// does not know yet what the writer knows (KIP-511).
#[inline]
pub const fn response_header_version(key: ApiKey, version: i16) -> i16 {
    if matches!(key, ApiKey::ApiVersions) || !is_flexible(key, version) { 0 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_has_a_codec_and_stands_in_order() {
        assert!(SUPPORTED.is_sorted_by(|a, b| a.key < b.key));
        for api in SUPPORTED {
            let (min, max) = api.key.versions();
            assert!(api.max <= max, "{:?}", api.key);
            assert!(api.min >= min || api.key == ApiKey::Produce, "{:?}", api.key);
            for version in min.max(api.min)..=api.max {
                assert_eq!(accept(api.key as i16, version), Ok(api.key));
            }
            assert_eq!(accept(api.key as i16, api.max + 1), Err(Unsupported::Version(api.key, api.max + 1)));
            assert_eq!(accept(api.key as i16, -1), Err(Unsupported::Version(api.key, -1)));
        }
    }

    #[test]
    fn produce_is_advertised_from_0_and_served_from_3() {
        assert_eq!(SUPPORTED[0], ApiVersions { key: ApiKey::Produce, min: 0, max: 13 });
        assert_eq!(accept(0, 2), Err(Unsupported::Version(ApiKey::Produce, 2)));
        assert_eq!(accept(0, 3), Ok(ApiKey::Produce));
    }

    #[test]
    fn apis_of_brokers_and_of_later_are_not_served() {
        for key in [-1, 4, 5, 6, 7, 27, 56, 93, i16::MAX] {
            assert_eq!(accept(key, 0), Err(Unsupported::Api(key)));
        }
    }

    #[test]
    fn headers_are_kafkas() {
        assert_eq!(request_header_version(ApiKey::Produce, 8), 1);
        assert_eq!(request_header_version(ApiKey::Produce, 9), 2);
        assert_eq!(response_header_version(ApiKey::Produce, 9), 1);
        assert_eq!(request_header_version(ApiKey::ApiVersions, 3), 2);
        assert_eq!(request_header_version(ApiKey::ApiVersions, i16::MAX), 2);
        assert_eq!(response_header_version(ApiKey::ApiVersions, 3), 0);
        assert_eq!(request_header_version(ApiKey::SaslHandshake, 1), 1);
    }
}
