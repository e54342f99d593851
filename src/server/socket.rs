//! Bound sockets that accept connections: TCP and Unix.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
};

use super::unix_socket::UnixSocket;

/// A bound socket that accepts connections.
pub(super) trait Accept: Send + Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for a connection, and returns it with the address of its client. Cancel-safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, IpAddr)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        let _ = stream.set_nodelay(true);
        // An IPv4 client of a dual-stack socket has an IPv4-mapped address.
        Ok((stream, peer.ip().to_canonical()))
    }
}

impl Accept for UnixSocket {
    type Stream = UnixStream;

    /// The client has the address of this machine, where it runs.
    async fn accept(&self) -> io::Result<(UnixStream, IpAddr)> {
        let (stream, _) = self.listener().accept().await?;
        Ok((stream, Ipv4Addr::LOCALHOST.into()))
    }
}
