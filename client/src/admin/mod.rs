//! Administration: each function one request, routed to the broker that takes it, with an owned answer.

pub mod configs;
pub mod groups;
pub mod topics;

use crate::cluster::Cluster;
use crate::error::Error;
use crate::metadata::Broker;
use flumen_wire::messages::describe_cluster_request::DescribeClusterRequest;

/// How long a broker may take over a change.
const CHANGE_TIMEOUT_MS: i32 = 30_000;

/// A cluster, as its brokers describe it.
#[derive(Clone, Debug)]
pub struct ClusterDescription {
    /// Its id.
    pub cluster_id: Option<String>,
    /// The broker that decides.
    pub controller: i32,
    /// All brokers.
    pub brokers: Vec<Broker>,
}

/// Describes the cluster. A broker without DescribeCluster is asked for its metadata, which says the same.
pub async fn describe_cluster(cluster: &Cluster) -> Result<ClusterDescription, Error> {
    let link = cluster.any().await?;
    if link.version::<DescribeClusterRequest>().is_err() {
        let metadata = cluster.refresh(crate::cluster::Topics::None, false).await?;
        return Ok(ClusterDescription {
            cluster_id: metadata.cluster_id.clone(),
            controller: metadata.controller,
            brokers: metadata.brokers.clone(),
        });
    }
    let answer = link.call(|_| DescribeClusterRequest::default()).await?;
    let response = answer.read()?;
    Error::check(response.error_code, response.error_message, || "the cluster".to_owned())?;
    let mut brokers: Vec<_> = response
        .brokers
        .iter()
        .map(|one| Broker {
            id: one.broker_id,
            host: one.host.to_owned(),
            port: one.port,
            rack: one.rack.map(str::to_owned),
        })
        .collect();
    brokers.sort_by_key(|one| one.id);
    Ok(ClusterDescription {
        cluster_id: Some(response.cluster_id.to_owned()),
        controller: response.controller_id,
        brokers,
    })
}
