//! The commands of a fleet: `slb apply`, `get`, `delete`, `fleet status`, `fleet forget` and `controller`.

mod controller;
mod forget;
mod patient;
mod show;
mod telling;
mod wanted;

use std::path::PathBuf;
use std::sync::Arc;

use slb_fleet::store::etcd::{Access, Certificates, EtcdStore};

pub(crate) use self::controller::run as control;
pub(crate) use self::forget::run as forget;
pub(crate) use self::show::{run as status, table};
pub(crate) use self::wanted::{apply, delete, get, plain};

use crate::Failure;
use crate::cli::{FleetAccess, StoreOptions};

/// Opens the store in the options.
pub(crate) fn open(options: &StoreOptions) -> Result<Arc<EtcdStore>, Failure> {
    connect(&options.fleet, &options.access)
}

/// Opens the store at some addresses.
pub(crate) fn connect(urls: &[String], options: &FleetAccess) -> Result<Arc<EtcdStore>, Failure> {
    let path = |path: &Option<PathBuf>| path.as_deref().map(|path| path.display().to_string());
    let files = (
        path(&options.fleet_ca),
        path(&options.fleet_cert),
        path(&options.fleet_key),
    );
    let certificates = match &files {
        (None, None, None) => None,
        (Some(authority), Some(certificate), Some(key)) => Some(Certificates {
            authority,
            certificate,
            key,
        }),
        _ => {
            return Err(Failure::usage(
                "--fleet-ca, --fleet-cert and --fleet-key belong together",
            ));
        }
    };
    let access = Access::new(urls, certificates);
    let access = access.map_err(|error| Failure::usage(format!("--fleet: {error}")))?;
    let store = EtcdStore::new(access).map_err(Failure::failed)?;
    Ok(Arc::new(store))
}
