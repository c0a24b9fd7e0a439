//! Writes the CRD manifests: `cargo run -p standfast-crds --example crdgen -- crds/manifests`.

use std::{error::Error, fs, path::Path};

use kube::CustomResourceExt;
use standfast_crds::v1alpha1::{Approval, TradingHalt, TradingResume, TradingSystem};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: crdgen FOLDER")?;
    for crd in [TradingSystem::crd(), TradingHalt::crd(), TradingResume::crd(), Approval::crd()] {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let yaml = serde_saphyr::to_string(&crd)?;
        fs::write(Path::new(&folder).join(format!("{name}.yaml")), yaml)?;
    }
    Ok(())
}
