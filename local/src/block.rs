//! Starts a block on this machine and ends it in good order.
//!
//! Start: broker, output, app, input. End: input (drains), output, app, broker: nothing that is
//! open loses what it needs to end (D-S1, D-S4).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{Broker, Listen, Options as BrokerOptions, Storage};
use millrace_core::contract::block::{Block, EnvironmentValue, Problem};
use millrace_core::token::ReleaseId;
use millrace_service::config::{self, Environment};
use millrace_service::shutdown::Shutdown;
use millrace_service::telemetry::chain;
use tokio::sync::{mpsc, oneshot};

use crate::document::{self, Addresses};
use crate::process::{Line, Spec, StartError, Supervised};
use crate::python;

/// The release of a block that has no releases yet.
pub const FIRST_RELEASE: &str = "r1-00000000";
/// Where other commands find the address of the broker, beside the document.
pub const ADDRESS_FILE: &str = "bootstrap";
/// The port that the broker takes if it is free (design, "Ports").
const BROKER_PORT: u16 = 9092;
/// How long the app may take to end.
const APP_GRACE: Duration = Duration::from_secs(5);
/// How long a proxy may take to end: a drain lasts 55 s at most.
const PROXY_GRACE: Duration = Duration::from_secs(60);

/// How to run a block.
#[derive(Clone, Debug)]
pub struct Options {
    /// The document.
    pub document: PathBuf,
    /// The environment of the command; overrides the document.
    pub environment: Environment,
    /// Real binaries in place of tasks.
    pub processes: bool,
    /// Where the broker listens; `None`: 9092 if it is free, else any; 0: any.
    pub broker_port: Option<u16>,
    /// Keep nothing: the broker lives in a folder that the caller removes.
    pub broker_folder: Option<PathBuf>,
}

/// Why a block does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document.
    #[error(transparent)]
    Document(#[from] config::Error),
    /// The document is right, but not for a laptop, or not for this version.
    #[error("{} cannot be started here:\n{}", path.display(), problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
    NotHere {
        /// Which.
        path: PathBuf,
        /// Everything that is in the way.
        problems: Vec<Problem>,
    },
    /// The state folder.
    #[error("failed to prepare {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The embedded broker.
    #[error("failed to start the embedded broker")]
    Broker(#[from] millrace_broker::StartError),
    /// The app's Python.
    #[error(transparent)]
    Python(#[from] python::Error),
    /// A child process.
    #[error(transparent)]
    Process(#[from] StartError),
    /// A proxy refused to start.
    #[error("the {0} proxy refused to start: {1}")]
    Proxy(&'static str, String),
    /// The release id.
    #[error("MILLRACE_RELEASE")]
    Release(#[from] millrace_core::token::InvalidReleaseId),
}

/// A block that runs.
#[derive(Debug)]
pub struct Laptop {
    block: Arc<Block>,
    addresses: Addresses,
    release: ReleaseId,
    input: Part,
    output: Part,
    app: Supervised,
    python: Option<PathBuf>,
    broker: Option<Broker>,
    sockets: PathBuf,
    address_file: PathBuf,
}

/// A proxy, either way.
#[derive(Debug)]
enum Part {
    Task {
        shutdown: Shutdown,
        task: tokio::task::JoinHandle<Result<(), String>>,
    },
    Process(Supervised),
}

impl Part {
    fn pid(&self) -> Option<u32> {
        match self {
            Self::Task { .. } => Some(std::process::id()),
            Self::Process(process) => process.pid(),
        }
    }

    async fn stop(self) -> Result<(), String> {
        match self {
            Self::Process(process) => {
                process.stop().await;
                Ok(())
            }
            Self::Task { shutdown, task } => {
                shutdown.request();
                task.await.unwrap_or_else(|panic| Err(panic.to_string()))
            }
        }
    }
}

/// Folders of a block on a laptop.
struct Folders {
    /// Where the document is.
    home: PathBuf,
    /// `.millrace` beside the document.
    state: PathBuf,
    /// The block's own below it.
    own: PathBuf,
}

impl Laptop {
    /// Starts everything; returns when all parts are under way. The input joins its group when
    /// the app is ready.
    pub async fn start(options: Options, lines: mpsc::Sender<Line>) -> Result<Self, Error> {
        let written = config::document(&options.document, &options.environment)?;
        let asked = config::load(&options.document, &options.environment)?;
        let problems: Vec<Problem> = asked
            .problems_on_a_laptop()
            .into_iter()
            .chain(asked.not_in_this_version().iter().cloned())
            .collect();
        if !problems.is_empty() {
            let path = options.document;
            return Err(Error::NotHere { path, problems });
        }
        let folders = Folders::prepare(&options.document, &asked)?;
        let broker = if document::needs_broker(&asked) {
            Some(start_broker(&options, &asked, &folders)?)
        } else {
            None
        };
        let sockets = short_folder()?;
        let bootstrap = broker.as_ref().map(Broker::bootstrap);
        let addresses = Addresses::choose(&asked, bootstrap.clone(), &sockets)
            .map_err(|source| folder_error(&sockets, source))?;
        let resolved = document::resolve(written, &addresses);
        let path = folders.own.join("block.json");
        write_private(&path, &resolved.to_string())?;
        let environment = without_overrides(&options.environment);
        let block = Arc::new(config::load(&path, &environment)?);
        let release = options
            .environment
            .get("MILLRACE_RELEASE")
            .map_or(FIRST_RELEASE, String::as_str);
        let release = ReleaseId::new(release)?;
        let address_file = folders.state.join(ADDRESS_FILE);
        if let Some(bootstrap) = &bootstrap {
            std::fs::write(&address_file, bootstrap)
                .map_err(|source| folder_error(&address_file, source))?;
        }
        let python = venv(&block, &folders, &environment, &lines).await?;
        let app = app(
            &block,
            &folders,
            &environment,
            &release,
            &addresses,
            python.as_deref(),
            &lines,
        )
        .await?;
        let proxies = Proxies {
            block: &block,
            document: &path,
            environment: &environment,
            overrides: overrides(&options.environment),
            release: &release,
            lines: &lines,
        };
        let (output, input) = if options.processes {
            (proxies.process("output")?, proxies.process("input")?)
        } else {
            (proxies.output().await?, proxies.input())
        };
        Ok(Self {
            block,
            addresses,
            release,
            input,
            output,
            app,
            python: python.map(|venv| venv.join("bin/python")),
            broker,
            sockets,
            address_file,
        })
    }

    /// The block, with the addresses filled in.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Where everything listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The release that answers.
    pub fn release(&self) -> &ReleaseId {
        &self.release
    }

    /// The interpreter of the app's virtual environment, if it has one.
    pub fn python(&self) -> Option<&Path> {
        self.python.as_deref()
    }

    /// The embedded broker, if the block has one.
    pub fn broker(&self) -> Option<&Broker> {
        self.broker.as_ref()
    }

    /// The processes of the block with their ids; tasks share that of this process.
    pub fn pids(&self) -> Vec<(&'static str, Option<u32>)> {
        vec![
            ("input", self.input.pid()),
            ("app", self.app.pid()),
            ("output", self.output.pid()),
        ]
    }

    /// Waits until a task has ended although nobody asked; says which, and why. With real
    /// processes it waits for ever: dead ones are started again.
    pub async fn broken(&mut self) -> String {
        let watched = |part: &mut Part| -> bool { matches!(part, Part::Task { .. }) };
        if !watched(&mut self.input) {
            std::future::pending::<()>().await;
        }
        let (Part::Task { task: input, .. }, Part::Task { task: output, .. }) =
            (&mut self.input, &mut self.output)
        else {
            return std::future::pending().await;
        };
        let (name, ended) = tokio::select! {
            ended = input => ("input", ended),
            ended = output => ("output", ended),
        };
        match ended {
            Ok(Ok(())) => format!("the {name} proxy has ended"),
            Ok(Err(error)) => format!("the {name} proxy has ended: {error}"),
            Err(panic) => format!("the {name} proxy broke: {panic}"),
        }
    }

    /// Ends everything; what is open is finished first. Tells what went wrong on the way.
    pub async fn stop(self) -> Vec<String> {
        let mut troubles = Vec::new();
        troubles.extend(self.input.stop().await.err());
        troubles.extend(self.output.stop().await.err());
        self.app.stop().await;
        if let Some(broker) = self.broker {
            let stopped = tokio::task::spawn_blocking(|| broker.shutdown()).await;
            match stopped {
                Ok(Ok(())) => {}
                Ok(Err(error)) => troubles.push(chain(&error).to_string()),
                Err(panic) => troubles.push(panic.to_string()),
            }
            if let Err(error) = std::fs::remove_file(&self.address_file) {
                troubles.push(format!("{}: {error}", self.address_file.display()));
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.sockets) {
            troubles.push(format!("{}: {error}", self.sockets.display()));
        }
        troubles
    }
}

impl Folders {
    fn prepare(document: &Path, block: &Block) -> Result<Self, Error> {
        let home = match document.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let home = home
            .canonicalize()
            .map_err(|source| folder_error(&home, source))?;
        let state = home.join(".millrace");
        let own = state.join(block.identity.name());
        std::fs::create_dir_all(&own).map_err(|source| folder_error(&own, source))?;
        Ok(Self { home, state, own })
    }
}

fn folder_error(path: &Path, source: std::io::Error) -> Error {
    Error::Folder {
        path: path.to_owned(),
        source,
    }
}

/// The document with its addresses may name secrets' places: nobody else needs to read it.
fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| folder_error(path, source))
}

/// A folder of our own with a short name: a socket's path has room for about 100 bytes.
fn short_folder() -> Result<PathBuf, Error> {
    use std::os::unix::fs::DirBuilderExt;
    let base = std::env::temp_dir();
    for number in 0u32.. {
        let path = base.join(format!("millrace-{}-{number}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(folder_error(&path, source)),
        }
    }
    unreachable!("some number is free")
}

fn overrides(environment: &Environment) -> Vec<String> {
    let is_override = |name: &&String| name.to_ascii_uppercase().starts_with("MILLRACE__");
    environment.keys().filter(is_override).cloned().collect()
}

/// Overrides are in the resolved document already.
fn without_overrides(environment: &Environment) -> Environment {
    let mut rest = environment.clone();
    for name in overrides(environment) {
        rest.remove(&name);
    }
    rest
}

fn start_broker(options: &Options, block: &Block, folders: &Folders) -> Result<Broker, Error> {
    let folder = options
        .broker_folder
        .clone()
        .unwrap_or_else(|| folders.state.join("broker"));
    let mut broker = BrokerOptions::files(folder);
    let configured = block
        .connections
        .values()
        .find_map(|connection| match connection {
            millrace_core::contract::block::Connection::Embedded(embedded) => embedded.path.clone(),
            _ => None,
        });
    if let (Some(path), None) = (configured, &options.broker_folder) {
        broker.storage = Storage::Files {
            path: folders.home.join(path),
            fsync: false,
        };
    }
    broker.listen = Listen::Preferred(options.broker_port.unwrap_or(BROKER_PORT));
    broker.default_partitions = i32::try_from(block.topics.partitions).unwrap_or(i32::MAX);
    Ok(Broker::start(broker)?)
}

/// Makes the app's virtual environment, if it wants one.
async fn venv(
    block: &Block,
    folders: &Folders,
    environment: &Environment,
    lines: &mpsc::Sender<Line>,
) -> Result<Option<PathBuf>, Error> {
    let local = block
        .app
        .local
        .as_ref()
        .expect("checked: a laptop needs app.local");
    let Some(requirements) = &local.python_requirements else {
        return Ok(None);
    };
    let requirements = folders.home.join(&local.directory).join(requirements);
    let python = environment
        .get("MILLRACE_PYTHON")
        .map_or("python3", String::as_str);
    let say = |text| {
        let line = Line {
            component: "app",
            text,
        };
        // A line of pip that nobody can take right now is no loss.
        let _lost = lines.try_send(line);
    };
    Ok(Some(
        python::prepare(python, &requirements, &folders.own, say).await?,
    ))
}

/// Starts the app.
async fn app(
    block: &Block,
    folders: &Folders,
    environment: &Environment,
    release: &ReleaseId,
    addresses: &Addresses,
    venv: Option<&Path>,
    lines: &mpsc::Sender<Line>,
) -> Result<Supervised, Error> {
    let local = block
        .app
        .local
        .as_ref()
        .expect("checked: a laptop needs app.local");
    let directory = folders.home.join(&local.directory);
    let mut command = local.command.clone();
    let mut variables = vec![
        ("HOST".to_owned(), "127.0.0.1".to_owned()),
        ("PORT".to_owned(), addresses.app.to_string()),
        ("MILLRACE_RELEASE".to_owned(), release.as_str().to_owned()),
        ("PYTHONUNBUFFERED".to_owned(), "1".to_owned()),
    ];
    if let Some(socket) = &addresses.app_socket {
        variables.push(("SOCKET".to_owned(), socket.clone()));
    }
    if let Some(push) = addresses.push {
        let url = format!("http://127.0.0.1:{push}/");
        variables.push(("OUTPUT_URL".to_owned(), url));
    }
    if let Some(venv) = venv {
        if let Some(program) = command
            .first_mut()
            .filter(|p| *p == "python" || *p == "python3")
        {
            *program = venv.join("bin/python").display().to_string();
        }
        let path = environment.get("PATH").map_or("", String::as_str);
        variables.push((
            "PATH".to_owned(),
            format!("{}:{path}", venv.join("bin").display()),
        ));
        variables.push(("VIRTUAL_ENV".to_owned(), venv.display().to_string()));
    }
    for variable in &block.app.env {
        // References need a cluster; the command says so when it starts.
        if let EnvironmentValue::Text(text) = &variable.value {
            variables.push((variable.name.clone(), text.clone()));
        } else {
            let text = format!(
                "app.env {} refers to the cluster; it is not set here",
                variable.name
            );
            let line = Line {
                component: "app",
                text,
            };
            let _gone = lines.send(line).await;
        }
    }
    let program = PathBuf::from(command.first().cloned().unwrap_or_default());
    // A relative program with a slash is meant from the app's own folder.
    let relative = program.components().count() > 1 && program.is_relative();
    let spec = Spec {
        name: "app",
        program: if relative {
            directory.join(program)
        } else {
            program
        },
        arguments: command.into_iter().skip(1).collect(),
        directory,
        environment: variables,
        without: Vec::new(),
        grace: APP_GRACE,
    };
    Ok(Supervised::start(spec, lines.clone())?)
}

/// What both proxies are started with.
struct Proxies<'a> {
    block: &'a Arc<Block>,
    document: &'a Path,
    environment: &'a Environment,
    overrides: Vec<String>,
    release: &'a ReleaseId,
    lines: &'a mpsc::Sender<Line>,
}

impl Proxies<'_> {
    /// The real binary, which lies beside this one.
    fn process(&self, name: &'static str) -> Result<Part, Error> {
        let own = std::env::current_exe().map_err(|source| folder_error(Path::new("."), source))?;
        let program = own.with_file_name(format!("millrace-{name}"));
        let mut arguments = vec![self.document.display().to_string()];
        if name == "input" {
            arguments.insert(0, "--standalone".to_owned());
        }
        let spec = Spec {
            name,
            program,
            arguments,
            directory: PathBuf::from("."),
            environment: vec![
                (
                    "MILLRACE_RELEASE".to_owned(),
                    self.release.as_str().to_owned(),
                ),
                ("MILLRACE_POD".to_owned(), "local".to_owned()),
            ],
            without: self.overrides.clone(),
            grace: PROXY_GRACE,
        };
        Ok(Part::Process(Supervised::start(spec, self.lines.clone())?))
    }

    async fn output(&self) -> Result<Part, Error> {
        let shutdown = Shutdown::new();
        let environment = millrace_output::Environment {
            release: self.release.as_str().to_owned(),
            pod: "local".to_owned(),
            variables: self.environment.clone(),
            logs: None,
            any_block: false,
        };
        let (bound, listening) = oneshot::channel();
        let (block, until) = (Arc::clone(self.block), shutdown.clone());
        let task = tokio::spawn(async move {
            let run = millrace_output::run(&block, environment, until, bound);
            run.await.map_err(|error| chain(&error).to_string())
        });
        if listening.await.is_err() {
            let ended = task.await.unwrap_or_else(|panic| Err(panic.to_string()));
            return Err(Error::Proxy("output", ended.err().unwrap_or_default()));
        }
        Ok(Part::Task { shutdown, task })
    }

    fn input(&self) -> Part {
        let shutdown = Shutdown::new();
        let mut config = millrace_input::Config::new(
            Arc::clone(self.block),
            self.release.clone(),
            "local".to_owned(),
            self.environment.clone(),
        );
        config.standalone = true;
        let until = shutdown.clone();
        let task = tokio::spawn(async move {
            let run = millrace_input::run(config, until, |_| {});
            run.await.map_err(|error| chain(&error).to_string())
        });
        Part::Task { shutdown, task }
    }
}
