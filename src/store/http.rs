//! HTTP as a store needs it: requests whose redirects are followed here, so that the token goes to the Hub's own host and
//! to no other; and bounds on waiting.

use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri, header, uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::failure::Failure;

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// How long a connection may take to stand, and how long nothing may come over one that stands.
const CONNECT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_mins(1);

/// Asks one Hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    home: Uri,
    token: Option<String>,
}

/// The Hub's answer to a request for a file.
#[derive(Debug)]
pub(super) struct Resolved {
    /// What the Hub itself says of the file.
    pub(super) headers: HeaderMap,
    /// Where the bytes are: on the Hub, or on a host that it redirects to.
    pub(super) at: Uri,
}

impl Client {
    /// A client of the Hub at `endpoint`. Proxies are those of the environment.
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Result<Self, Failure> {
        let home = parse(endpoint)?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("qft/", env!("CARGO_PKG_VERSION")))
            // The length of a file and the place to continue it are those of its own bytes.
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .build();
        Ok(Self { agent: config.into(), home, token })
    }

    /// Asks what the Hub knows of the file at `url`. Follows redirects as long as they stay on its host.
    pub(super) fn resolve(&self, url: &str) -> Result<Resolved, Failure> {
        let mut at = parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(self.agent.head(&at), &at).call().map_err(boxed)?;
            let headers = || response.headers().clone();
            match target(&at, &response)? {
                None => return Ok(Resolved { headers: headers(), at }),
                Some(next) if self.is_home(&next) => at = next,
                Some(next) => return Ok(Resolved { headers: headers(), at: next }),
            }
        }
        Err(boxed(ureq::Error::TooManyRedirects))
    }

    /// The bytes at `url` from byte `from` on, as far as the server can give a part of a file.
    pub(super) fn bytes(&self, url: &Uri, from: u64) -> Result<Response<Body>, Failure> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.request(self.agent.get(&at), &at);
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(boxed)?;
            match target(&at, &response)? {
                None => return Ok(response),
                Some(next) => at = next,
            }
        }
        Err(boxed(ureq::Error::TooManyRedirects))
    }

    /// The bytes of a text at `url` of at most `limit` bytes.
    pub(super) fn text(&self, url: &str, limit: u64) -> Result<Vec<u8>, Failure> {
        let response = self.bytes(&parse(url)?, 0)?;
        response.into_body().into_with_config().limit(limit).read_to_vec().map_err(boxed)
    }

    /// `request` for `url`, with the token if it is for the Hub.
    fn request(&self, request: RequestBuilder<WithoutBody>, url: &Uri) -> RequestBuilder<WithoutBody> {
        match self.token.as_ref().filter(|_| self.is_home(url)) {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Whether `url` is on the host that the token is for.
    fn is_home(&self, url: &Uri) -> bool {
        let same_host = match (url.host(), self.home.host()) {
            (Some(host), Some(home)) => host.eq_ignore_ascii_case(home),
            _ => false,
        };
        let (port, home) = (port(url), port(&self.home));
        // The same host's own step from http to https keeps the secret better than it was.
        same_host && (port == home || (port, home) == (Some((true, 443)), Some((false, 80))))
    }
}

/// Whether an address is https, and its port. `None` where neither scheme is known.
fn port(url: &Uri) -> Option<(bool, u16)> {
    let secure = match url.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    Some((secure, url.port_u16().unwrap_or(if secure { 443 } else { 80 })))
}

fn boxed(error: ureq::Error) -> Failure {
    Failure::Request(Box::new(error))
}

fn parse(url: &str) -> Result<Uri, Failure> {
    let uri: Uri = url.parse().map_err(|e| Failure::Answer(format!("{url:?} is no address: {e}")))?;
    match port(&uri) {
        Some(_) => Ok(uri),
        None => Err(Failure::Answer(format!("{url:?} is no http or https address"))),
    }
}

/// Where `response` redirects to; `None` if it is what was asked for. An answer that says no is a failure; that a file
/// has no such part is an answer.
fn target(at: &Uri, response: &Response<Body>) -> Result<Option<Uri>, Failure> {
    match response.status().as_u16() {
        200..=299 | 416 => return Ok(None),
        301 | 302 | 303 | 307 | 308 => {}
        status => return Err(Failure::of_status(status)),
    }
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| Failure::Answer("a redirect leads nowhere".to_owned()))?;
    join(at, location).map(Some)
}

/// The address that `location` means in an answer to a request for `at`.
fn join(at: &Uri, location: &str) -> Result<Uri, Failure> {
    let location = location.split('#').next().unwrap_or_default();
    if let Some(rest) = location.strip_prefix("//") {
        return parse(&format!("{}://{rest}", at.scheme_str().unwrap_or("https")));
    }
    let is_absolute = location.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
    if is_absolute {
        return parse(location);
    }
    let path = match location {
        "" => at.path().to_owned(),
        rooted if rooted.starts_with('/') => rooted.to_owned(),
        query if query.starts_with('?') => format!("{}{query}", at.path()),
        beside => format!("{}/{beside}", at.path().rsplit_once('/').map_or("", |(dir, _)| dir)),
    };
    let unfit = |e: String| Failure::Answer(format!("a redirect leads to {location:?}: {e}"));
    let mut parts: uri::Parts = at.clone().into_parts();
    parts.path_and_query = Some(path.parse().map_err(|e: uri::InvalidUri| unfit(e.to_string()))?);
    Uri::from_parts(parts).map_err(|e| unfit(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_for_one_host_and_port() {
        let client = Client::new("https://Hub.org/mirror", None).unwrap();
        let home = |url: &str| client.is_home(&url.parse().unwrap());
        assert!(home("https://hub.org/x") && home("https://hub.org:443/x"));
        for other in ["http://hub.org/x", "https://hub.org:8443/x", "https://cdn.hub.org/x", "https://hub.org.evil/x"] {
            assert!(!home(other), "{other}");
        }
        let plain = Client::new("http://hub.org", None).unwrap();
        assert!(plain.is_home(&"https://hub.org/x".parse().unwrap()));
        assert!(!plain.is_home(&"http://hub.org:8080/x".parse().unwrap()));
    }

    #[test]
    fn locations_are_read_as_browsers_read_them() {
        let at = "http://h:1/a/b?q=1".parse().unwrap();
        for (location, expected) in [
            ("https://other/x?y=http://z", "https://other/x?y=http://z"),
            ("//other/x", "http://other/x"),
            ("/x/y?z=a:b", "http://h:1/x/y?z=a:b"),
            ("c", "http://h:1/a/c"),
            ("?r=2", "http://h:1/a/b?r=2"),
            ("/x#part", "http://h:1/x"),
        ] {
            assert_eq!(join(&at, location).unwrap().to_string(), expected, "{location}");
        }
        for bad in ["file:///etc/passwd", "http://", "/x y"] {
            assert!(join(&at, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_endpoint_must_be_an_address() {
        for bad in ["", "hub", "ftp://hub", "http://"] {
            assert!(matches!(Client::new(bad, None), Err(Failure::Answer(_))), "{bad}");
        }
    }
}
