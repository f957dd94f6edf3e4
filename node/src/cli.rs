//! The command line, as text: what the flags are called and what they take. What they mean is checked in
//! [`crate::config`], which they share with environment and file.
use clap::Parser;
use std::path::PathBuf;

/// One node of a Flumen cluster: a distributed commit log that speaks the Apache Kafka protocol.
///
/// Every flag can also be set in the environment (FLUMEN_DATA_DIR for --data-dir; FLUMEN_SET_NUM_PARTITIONS for --set
/// num.partitions) or in the file of --config (data-dir = "..."; settings under [set]). Flags override the
/// environment, which overrides the file. FLUMEN_LOG sets what is logged, as in "info,flumen_node=debug".
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "flumen-node", version, max_term_width = 100)]
pub struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's number in the cluster [default: 1]
    #[arg(long, value_name = "N")]
    pub node_id: Option<String>,
    /// Where everything is kept [default: ./flumen-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Address for Kafka clients; port 0 takes a free one [default: 127.0.0.1:9092]
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka_addr: Option<String>,
    /// Address that clients are told to connect to [default: that of --kafka-addr]
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka_advertised: Option<String>,
    /// Address for health and metrics, over HTTP [default: 127.0.0.1:9644]
    #[arg(long, value_name = "HOST:PORT")]
    pub admin_addr: Option<String>,
    /// Reserved: address for other nodes, UDP; nothing listens there yet [default: 127.0.0.1:7946]
    #[arg(long, value_name = "HOST:PORT")]
    pub cluster_addr: Option<String>,
    /// Reserved: cluster addresses of other nodes; a start that names another node is refused yet
    #[arg(long, value_name = "HOST:PORT,...")]
    pub seeds: Option<String>,
    /// Cores to run on, one shard each [default: all that this process may use]
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
    /// Memory for data: cache, journal, requests, as in 512MiB [default: a quarter of the machine's, at most 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// A broker setting under Kafka's name, as in num.partitions=3; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_those_that_others_rely_on() {
        Arguments::command().debug_assert();
        let line = "flumen-node --config f --node-id 2 --data-dir d --kafka-addr h:1 --kafka-advertised h:2 \
                    --admin-addr h:3 --cluster-addr h:4 --seeds a:1,b:2 --shards 3 --memory 1GiB --set a=b --set c=d=e";
        let arguments = Arguments::try_parse_from(line.split_whitespace()).expect("valid");
        assert_eq!(arguments.set, ["a=b", "c=d=e"]);
        assert_eq!(arguments.seeds.as_deref(), Some("a:1,b:2"));
        assert!(Arguments::try_parse_from(["flumen-node", "--nodeid", "3"]).is_err());
    }
}
