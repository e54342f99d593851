//! `server.admin` and the keys beside it: where the admin listener listens, and who may change
//! something by it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::net::SocketAddr as UnixAddress,
};

use rustls::pki_types::ServerName;

use super::{
    files::Base, problem::Problem, raw, server, token_file::TokenFile, values::AdminListen,
};
use crate::server::{AdminAddress, AdminTls};

pub(super) const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);

/// The keys of the admin listener.
pub(super) struct Admin {
    pub(super) address: AdminAddress,
    pub(super) tls: Option<AdminTls>,
    pub(super) tokens: Option<TokenFile>,
    pub(super) hosts: Vec<String>,
}

/// Reads the keys of the admin listener.
pub(super) fn read(raw: &raw::Server, base: Base<'_>) -> Result<Admin, Problem> {
    let address = address(raw.admin.as_ref(), base).map_err(|problem| problem.at("admin"))?;
    let tls = raw.admin_tls.as_ref().map(|raw| tls(raw, &address, base));
    let tokens = raw.admin_token_file.as_deref();
    let tokens = tokens.map(|file| TokenFile::read(file, base));
    let tokens = tokens
        .transpose()
        .map_err(|problem| problem.at("admin_token_file"))?;
    for (index, host) in raw.admin_hosts.iter().enumerate() {
        check_host(host).map_err(|problem| problem.at_index(index).at("admin_hosts"))?;
    }
    Ok(Admin {
        address,
        tls: tls.transpose().map_err(|problem| problem.at("admin_tls"))?,
        tokens,
        hosts: raw.admin_hosts.clone(),
    })
}

fn address(raw: Option<&AdminListen>, base: Base<'_>) -> Result<AdminAddress, Problem> {
    let path = match raw {
        None => return Ok(AdminAddress::Tcp(ADDRESS)),
        Some(AdminListen::Tcp(address)) => return Ok(AdminAddress::Tcp(*address)),
        Some(AdminListen::Unix(path)) => base.path(path)?,
    };
    // The system has a limit of about 100 bytes.
    UnixAddress::from_pathname(&path).map_err(|_| {
        let path = path.display();
        Problem::new(format!(
            "the path of the socket, {path}, is too long; write a shorter one"
        ))
    })?;
    Ok(AdminAddress::Unix(path))
}

fn tls(raw: &raw::AdminTls, address: &AdminAddress, base: Base<'_>) -> Result<AdminTls, Problem> {
    if matches!(address, AdminAddress::Unix(_)) {
        let message = "connections to a Unix socket don't leave this machine; remove it, or write an \
                       address in `server.admin`";
        return Err(Problem::new(message));
    }
    let (config, chain) = server::tls(&raw.certificate, &raw.key, None, base)?;
    Ok(AdminTls { config, chain })
}

fn check_host(host: &str) -> Result<(), Problem> {
    match ServerName::try_from(host) {
        Ok(ServerName::DnsName(_)) => Ok(()),
        Ok(_) => Err(Problem::new(format!(
            "{host} is an address, and every address is accepted; remove it"
        ))),
        Err(_) => Err(Problem::new(format!(
            "{host:?} is not a host name; write one without scheme and port, such as gate.internal"
        ))),
    }
}
