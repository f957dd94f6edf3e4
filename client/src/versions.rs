//! Which versions of which APIs a broker has, and the one to use: the newest that both sides know.

use crate::api::Call;
use flumen_wire::ApiKey;
use flumen_wire::messages::api_versions_response::ApiVersionsResponse;

/// Keys above this are not looked at: no API that we know has one.
const KEY_MAX: usize = 127;

/// What a broker advertises.
#[derive(Clone, Debug)]
pub struct Versions {
    /// By key; an empty range is an API that it lacks.
    ranges: Box<[(i16, i16)]>,
    /// Features that are finalized, with their levels.
    pub features: Vec<(String, i16)>,
}

impl Versions {
    /// Takes over what a broker says.
    pub fn new(response: &ApiVersionsResponse<'_>) -> Versions {
        let mut ranges = vec![(0, -1); KEY_MAX + 1].into_boxed_slice();
        for api in &response.api_keys {
            if let Some(range) = usize::try_from(api.api_key).ok().and_then(|key| ranges.get_mut(key)) {
                *range = (api.min_version, api.max_version);
            }
        }
        let features = &response.finalized_features;
        Versions {
            ranges,
            features: features.iter().map(|one| (one.name.to_owned(), one.max_version_level)).collect(),
        }
    }

    /// What the broker has of an API.
    pub fn range(&self, key: ApiKey) -> Option<(i16, i16)> {
        let range = self.ranges[key as usize];
        (range.0 <= range.1).then_some(range)
    }

    /// All APIs that it has and we know by name.
    pub fn all(&self) -> impl Iterator<Item = (ApiKey, i16, i16)> + '_ {
        (0..=KEY_MAX as i16).filter_map(|key| {
            let key = ApiKey::from_key(key)?;
            self.range(key).map(|(min, max)| (key, min, max))
        })
    }

    /// The newest version that both sides know.
    pub fn choose<R: Call>(&self) -> Option<i16> {
        let (min, max) = self.range(R::KEY)?;
        let chosen = R::NEWEST.min(max);
        (chosen >= R::MIN_VERSION.max(min)).then_some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_wire::messages::api_versions_response::ApiVersion;
    use flumen_wire::messages::metadata_request::MetadataRequest;

    fn with(min_version: i16, max_version: i16) -> Versions {
        let api = ApiVersion { api_key: 3, min_version, max_version };
        let unknown = ApiVersion { api_key: 30_000, min_version: 0, max_version: 1 };
        let negative = ApiVersion { api_key: -7, min_version: 0, max_version: 1 };
        Versions::new(&ApiVersionsResponse { api_keys: vec![unknown, negative, api], ..Default::default() })
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(with(0, 5).choose::<MetadataRequest<'_>>(), Some(5));
        assert_eq!(with(0, 99).choose::<MetadataRequest<'_>>(), Some(13));
        assert_eq!(with(13, 99).choose::<MetadataRequest<'_>>(), Some(13));
        assert_eq!(with(14, 99).choose::<MetadataRequest<'_>>(), None);
        // An empty range is how a broker says that it dropped an API.
        assert_eq!(with(1, 0).choose::<MetadataRequest<'_>>(), None);
    }
}
