//! `flumen cluster`.

use crate::cli::ClusterCommand;
use crate::failure::Failure;
use crate::output::{Column, Out, Table, printable};
use flumen_client::Cluster;
use flumen_client::admin;
use serde_json::{Value, json};

pub(crate) async fn run(cluster: &Cluster, command: ClusterCommand, out: &mut Out) -> Result<(), Failure> {
    let ClusterCommand::Info { apis } = command;
    let described = admin::describe_cluster(cluster).await?;
    let link = cluster.any().await?;
    let versions = link.versions();
    if out.is_json() {
        let broker = |one: &flumen_client::metadata::Broker| json!({ "id": one.id, "host": one.host, "port": one.port, "rack": one.rack, "controller": one.id == described.controller });
        let features: serde_json::Map<String, Value> =
            versions.features.iter().map(|(name, level)| (name.clone(), json!(level))).collect();
        let mut document = json!({
            "cluster_id": described.cluster_id,
            "controller": described.controller,
            "brokers": described.brokers.iter().map(broker).collect::<Vec<_>>(),
            "features": features,
        });
        if apis {
            let api = |(key, min, max): (flumen_wire::ApiKey, i16, i16)| json!({ "key": key as i16, "name": key.name(), "min": min, "max": max });
            document["apis"] = versions.all().map(api).collect::<Vec<_>>().into();
        }
        return out.json(&document);
    }
    let id = described.cluster_id.as_deref().unwrap_or("(unknown)");
    out.line(&printable(&format!("cluster {id}")))?;
    if !versions.features.is_empty() {
        let features: Vec<_> =
            versions.features.iter().map(|(name, level)| format!("{name} {level}")).collect();
        out.line(&printable(&format!("features {}", features.join(", "))))?;
    }
    let mut table = Table::new(&[
        Column::Number("BROKER"),
        Column::Text("ADDRESS"),
        Column::Text("RACK"),
        Column::Whole("CONTROLLER"),
    ]);
    for one in &described.brokers {
        let controller = if one.id == described.controller { "yes" } else { "" };
        table.row(vec![
            one.id.to_string(),
            one.address(),
            one.rack.clone().unwrap_or_else(|| "-".to_owned()),
            controller.to_owned(),
        ]);
    }
    out.table(&table)?;
    if apis {
        out.line("")?;
        let mut table = Table::new(&[
            Column::Number("KEY"),
            Column::Whole("API"),
            Column::Number("MIN"),
            Column::Number("MAX"),
        ]);
        for (key, min, max) in versions.all() {
            table.row(vec![
                (key as i16).to_string(),
                key.name().to_owned(),
                min.to_string(),
                max.to_string(),
            ]);
        }
        out.table(&table)?;
    }
    Ok(())
}
